"""Manifest files as people write them: the good are read whole, the bad are told by place, and never half."""

import io
import json
from pathlib import Path

import pytest

from kakuri.manifest import MAX_ERRORS, MAX_OBJECTS, ManifestErrors, parse, read
from kakuri.manifest import sources as manifest_sources
from kakuri.model import NodeManifest, RuntimeClassManifest, WorkloadManifest

GOOD = """\
kind: Workload
id: web
image: ghcr.io/example/app:1.0
runtime_class: gvisor
memory_mb: 64
cpu_millicores: 100
"""


def faults(text: str | bytes, tmp_path: Path, name: str = "m.yaml") -> list[str]:
    """What is said of a file with this text, without the folder's name."""
    file = tmp_path / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ManifestErrors) as caught:
        parse([str(file)])
    return [str(e).replace(f"{tmp_path}/", "") for e in caught.value.errors]


def workload(id_: str = "web") -> str:
    return GOOD.replace("id: web", f"id: {id_}")


def test_documents_become_models_in_their_order(tmp_path: Path) -> None:
    file = tmp_path / "all.yaml"
    file.write_text(
        GOOD + "---\nkind: Node\nid: n1\nschedulable: false\n---\n# nothing here\n---\n"
        "kind: RuntimeClass\nid: fast\nhandler: crun\n"
    )
    web, node, fast = parse([str(file)])
    assert isinstance(web, WorkloadManifest)
    assert web.memory_mb == 64
    assert isinstance(node, NodeManifest)
    assert not node.schedulable
    assert isinstance(fast, RuntimeClassManifest)


def test_a_folder_is_read_sorted_without_hidden_and_other_files(tmp_path: Path) -> None:
    for name, id_ in [("b.yml", "b"), ("a.yaml", "a"), ("c.json", "c"), (".hidden.yaml", "h"), ("notes.txt", "n")]:
        (tmp_path / name).write_text(workload(id_))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "d.yaml").write_text(workload("d"))
    assert [m.id for m in parse([str(tmp_path)])] == ["a", "b", "c"]


def test_a_file_given_twice_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(GOOD)
    assert [m.id for m in parse([str(tmp_path / "a.yaml"), str(tmp_path)])] == ["web"]


def test_a_dash_is_stdin() -> None:
    assert [m.id for m in parse(["-"], stdin=io.BytesIO(GOOD.encode()))] == ["web"]


def test_an_error_in_stdin_names_it() -> None:
    with pytest.raises(ManifestErrors, match=r"^<stdin>:5:1: memory_mb: "):
        parse(["-"], stdin=io.BytesIO(GOOD.replace("64", "-1").encode()))


@pytest.mark.parametrize("escaped", [True, False], ids=["escaped", "raw"])
def test_json_is_read_with_tabs_escapes_and_lists(escaped: bool, tmp_path: Path) -> None:
    objects = [
        {**_fields(), "id": "a", "env": {"FACE": "\U0001f600/\x85"}},
        {**_fields(), "id": "b"},
    ]
    file = tmp_path / "all.json"
    file.write_text(json.dumps(objects, indent="\t", ensure_ascii=escaped), encoding="utf-8")
    first, second = parse([str(file)])
    assert isinstance(first, WorkloadManifest)
    assert first.env == {"FACE": "\U0001f600/\x85"}
    assert second.id == "b"


def _fields() -> dict[str, object]:
    return {"kind": "Workload", "image": "a/b:1", "runtime_class": "gvisor", "memory_mb": 64, "cpu_millicores": 100}


def test_what_the_server_owns_is_dropped_unread(tmp_path: Path) -> None:
    file = tmp_path / "m.yaml"
    file.write_text(
        GOOD + "uid: 1\ngeneration: x\nresource_version: 5\ncreated_at: 2020-01-01\ndeleted_at: {}\n"
        "status: {state: Running, since: 2020-01-01T00:00:00Z}\n"
    )
    assert parse([str(file)]) == parse(["-"], stdin=io.BytesIO(GOOD.encode()))


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert [m.id for m in parse([str(tmp_path)])] == ["web"]


def test_a_few_aliases_are_understood(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(GOOD + "labels: &l {app: web}\nnode_selector: *l\n")
    (found,) = parse([str(tmp_path)])
    assert isinstance(found, WorkloadManifest)
    assert found.node_selector == {"app": "web"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param("memory_mb: 7", "m.yaml:7:1: memory_mb: is given twice, first in line 5; remove one", id="key"),
        pytest.param(
            "env: {A: x, A: y}", "m.yaml:7:13: env.A: is given twice, first in line 7; remove one", id="inner key"
        ),
        pytest.param("env:\n\tA: b", "m.yaml:8:1: a tab stands where YAML allows none; use spaces", id="tab"),
        pytest.param('replicas: "3"', "m.yaml:7:1: replicas: is text; write 3 without quotes", id="text for number"),
        pytest.param("replicas: 1.5", "m.yaml:7:1: replicas: is 1.5; write a whole number", id="float for number"),
        pytest.param(
            "replicas: 3Gi", "m.yaml:7:1: replicas: is the text '3Gi'; write a whole number, without a unit", id="unit"
        ),
        pytest.param("replicas:", "m.yaml:7:1: replicas: has no value; write a whole number", id="no value"),
        pytest.param("replicas: -1", "m.yaml:7:1: replicas: is -1, too small; the least is 0", id="negative"),
        pytest.param("replicas: 99999", "m.yaml:7:1: replicas: is 99999, too large; the most is 10000", id="absurd"),
        pytest.param(
            f"replicas: {'9' * 5000}", "m.yaml:7:1: replicas: is absurdly large; write a smaller number", id="huge"
        ),
        pytest.param("replicsa: 3", "m.yaml:7:1: replicsa: is no field here; did you mean replicas?", id="unknown"),
        pytest.param(
            f"env: {{{', '.join(f'A{n}: b' for n in range(1025))}}}",
            "m.yaml:7:1: env: has 1025 entries, too many; the most is 1024",
            id="too many in a map",
        ),
        pytest.param(
            f"args: [{', '.join('a' for _ in range(1025))}]",
            "m.yaml:7:1: args: has 1025 entries, too many; the most is 1024",
            id="too many in a list",
        ),
        pytest.param(
            "ports: [{port: 80, hostPort: 8080}]",
            "m.yaml:7:20: ports[0].hostPort: is no field here; did you mean host_port?",
            id="unknown inside",
        ),
        pytest.param(
            "ports:\n- port: 80\n  host_port: 90\n- {port: 81, host_port: 90}",
            "m.yaml:7:1: ports: host_port 90/tcp is given twice; a host port can lead to one port only",
            id="port twice",
        ),
        pytest.param("command: sh", "m.yaml:7:1: command: is text; write a list, such as [a, b]", id="no list"),
        pytest.param("env: [A]", "m.yaml:7:1: env: is a list; write a map, such as {key: value}", id="no map"),
        pytest.param(
            "env: {ON: true}",
            'm.yaml:7:7: env.ON: is a truth value (true), not text; write it in quotes: "true"',
            id="bool",
        ),
        pytest.param(
            "args: [--version, 1.10]",
            'm.yaml:7:19: args[1]: is a number, not text; write it in quotes: "1.10"',
            id="number for text",
        ),
        pytest.param(
            "replicas: 0o17",
            "m.yaml:7:1: replicas: 0o17 is not the same number to every reader of YAML; "
            'write it in decimal, or "in quotes"',
            id="octal",
        ),
        pytest.param(
            "env: {DAY: 2024-02-30}",
            'm.yaml:7:7: env.DAY: is a date to some readers of YAML; write it in quotes: "2024-02-30"',
            id="date",
        ),
        pytest.param(
            "labels: {8080: a}", 'm.yaml:7:10: labels.8080: the key 8080 is not text; write "8080"', id="number key"
        ),
        pytest.param("env: {[a]: b}", "m.yaml:7:7: a map or list is used as a key; keys are text", id="list key"),
        pytest.param(
            "env: {<<: {}}",
            "m.yaml:7:7: env.<<: merge keys are not understood; write the fields out",
            id="merge key",
        ),
        pytest.param(
            "command: [!!python/object/apply:os.system [ls]]",
            "m.yaml:7:11: command[0]: the tag !!python/object/apply:os.system is not understood; remove it",
            id="python tag",
        ),
        pytest.param(
            "env: *nowhere",
            "m.yaml:7:6: the alias *nowhere refers to no anchor above it; write the value out",
            id="loose",
        ),
        pytest.param(
            "env: &e {A: *e}",
            "m.yaml:7:13: the alias *e stands inside what it refers to; write the value out",
            id="ring",
        ),
        pytest.param(
            "restart_policy: always",
            "m.yaml:7:1: restart_policy: 'always' is not allowed; did you mean Always?",
            id="enum",
        ),
        pytest.param("env: 'a\x07'", "m.yaml:7:8: the character U+0007 can't stand in YAML; remove it", id="control"),
        pytest.param('args: ["\\ud800"]', "m.yaml:7:8: args[0]: is no valid Unicode text; remove the lone surrogates"),
        pytest.param('args: ["\\0"]', "m.yaml:7:8: args[0]: a NUL character can't be passed to a process; remove it"),
    ],
)
def test_a_bad_line_is_told_by_place_and_remedy(change: str, said: str, tmp_path: Path) -> None:
    assert faults(f"{GOOD}{change}\n", tmp_path) == [said]


def test_an_unknown_field_with_no_near_name_lists_the_known_ones(tmp_path: Path) -> None:
    (said,) = faults(f"{GOOD}security_profile: {{}}\n", tmp_path)
    assert said.startswith("m.yaml:7:1: security_profile: is no field here; remove it, or use one of args, command, ")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("id: a\n", "m.yaml:1:1: kind: is missing; add one of Workload, Node, RuntimeClass", id="no kind"),
        pytest.param("Kind: Node\nid: a\n", "m.yaml:1:1: kind: is missing; is 'Kind' meant to be it?", id="Kind"),
        pytest.param("kind: workload\n", "m.yaml:1:1: kind: 'workload' is no kind; did you mean Workload?", id="case"),
        pytest.param("kind: Pod\n", "m.yaml:1:1: kind: 'Pod' is no kind; use Workload, Node, RuntimeClass", id="Pod"),
        pytest.param("kind: Node\n", "m.yaml:1:1: id: is missing; add it, such as id: web", id="no id"),
        pytest.param("kind: Node\nid:\n", "m.yaml:2:1: id: has no value; write one, such as id: web", id="empty id"),
        pytest.param("kind: Node\nid: N_1\n", "m.yaml:2:1: id: 'N_1' is not a name; use at most 63 of a-z", id="id"),
        pytest.param(
            GOOD.replace("ghcr.io/example/app:1.0", "'my app'"),
            "m.yaml:3:1: image: 'my app' is not an image reference; use name[:tag][@digest]",
            id="image",
        ),
        pytest.param("hello\n", "m.yaml:1:1: is text; write a map with kind, id and fields", id="text"),
        pytest.param("", "m.yaml:1:1: has nothing in it", id="empty"),
        pytest.param("# a\n---\n---\n", "m.yaml:1:1: has nothing in it", id="comments"),
        pytest.param(b"\x7fELF\x02\x00\x00", "m.yaml:1:1: is binary, not YAML", id="binary"),
        pytest.param(GOOD.encode("utf-16"), "m.yaml:1:1: is binary, not YAML", id="UTF-16"),
        pytest.param(b"a: b\nc: \xff\n", "m.yaml:2:4: the byte 0xff is not UTF-8; save the file as UTF-8", id="bytes"),
        pytest.param("a: [" + "[" * 5000, "m.yaml:1:35: nests deeper than 32 levels", id="depth"),
        pytest.param("a: [1, 2\n", "m.yaml:2:1: is not YAML: expected ',' or ']'", id="open bracket"),
        pytest.param("a: b: c\n", "m.yaml:1:5: a second 'key:' in one value; check the indentation", id="two colons"),
    ],
)
def test_a_bad_document_is_told(text: str | bytes, said: str, tmp_path: Path) -> None:
    (found,) = faults(text, tmp_path)
    assert found.startswith(said)


def test_a_bomb_of_aliases_is_refused_before_it_expands(tmp_path: Path) -> None:
    levels = "".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 20)}]\n" for i in range(1, 10))
    (said,) = faults("l0: &l0 [1]\n" + levels, tmp_path)
    assert "has more than 64 aliases" in said


def test_few_aliases_to_much_are_refused_too(tmp_path: Path) -> None:
    big = f"a: &a [{'1, ' * 40_000}]\n"
    (said,) = faults(f"{big}b: [{'*a, ' * 60}]\n", tmp_path)
    assert "has more than 1,000,000 values, aliases expanded" in said


def test_a_file_of_10_mb_is_refused_unread(tmp_path: Path) -> None:
    assert faults("# filler\n" * 1_200_000, tmp_path) == [
        "m.yaml:1:1: is over 4 MiB, too large for a manifest; split it"
    ]


def test_more_objects_than_one_apply_takes_are_refused(tmp_path: Path) -> None:
    text = "---\n".join(f"{{kind: Node, id: n{i}}}\n" for i in range(MAX_OBJECTS + 1))
    (said,) = faults(text, tmp_path)
    assert said.endswith("is object number 5,001; one apply takes 5,000; split it")


def test_two_objects_with_one_id_name_both_places(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(GOOD)
    (tmp_path / "b.yaml").write_text(f"{workload('other')}---\n{GOOD}")
    with pytest.raises(ManifestErrors) as caught:
        parse([str(tmp_path)])
    message = f"id: Workload web is already at {tmp_path}/a.yaml:2:1; give it another id, or remove one"
    assert [str(e) for e in caught.value.errors] == [f"{tmp_path}/b.yaml:9:1: {message}"]


def test_one_id_of_two_kinds_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"{GOOD}---\nkind: Node\nid: web\n")
    assert len(parse([str(tmp_path)])) == 2


def test_a_good_document_beside_a_bad_one_gives_nothing(tmp_path: Path) -> None:
    assert faults(f"{GOOD}---\nkind: Node\nid: UPPER\n", tmp_path)[0].startswith("m.yaml:9:1: id: ")


def test_all_faults_of_all_files_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(GOOD.replace("64", "0"))
    (tmp_path / "b.yaml").write_text("a: [")
    (tmp_path / "c.yaml").write_text(GOOD.replace("id: web", "id: c").replace("100", "many"))
    with pytest.raises(ManifestErrors) as caught:
        parse([str(tmp_path), str(tmp_path / "gone.yaml")])
    assert [Path(e.file).name for e in caught.value.errors] == ["a.yaml", "b.yaml", "c.yaml", "gone.yaml"]


def test_no_more_than_fifty_faults_are_told_and_the_rest_counted(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text("---\n".join(["kind: Node\n"] * 60))
    with pytest.raises(ManifestErrors) as caught:
        parse([str(tmp_path)])
    assert len(caught.value.errors) == MAX_ERRORS
    assert str(caught.value).endswith("\nand 10 more")


def test_a_missing_file_and_a_folder_without_manifests_are_told(tmp_path: Path) -> None:
    with pytest.raises(ManifestErrors) as caught:
        parse([str(tmp_path / "gone.yaml"), str(tmp_path)])
    assert [e.message for e in caught.value.errors] == [
        "there is no such file",
        "the folder has no manifest (*.yaml, *.yml, *.json) of its own",
    ]


def test_a_file_that_may_not_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.yaml").write_text(GOOD)

    def refuse(stream: object) -> bytes:  # root may read everything, so the refusal is made here
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(manifest_sources, "_read", refuse)
    with pytest.raises(ManifestErrors, match="may not be read by this user"):
        parse([str(tmp_path)])


def test_a_fault_the_server_finds_is_shown_at_its_place(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text(f"{GOOD}ports:\n- port: 80\n  host_port: 90\n")
    (entry,) = read([str(tmp_path)])
    error = entry.error(("ports", 0, "host_port"), "is taken")
    assert str(error) == f"{tmp_path}/m.yaml:9:3: ports[0].host_port: is taken"
