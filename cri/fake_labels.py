"""Which of the fake runtime's things bear which labels: so that a list costs what it finds, not what there is."""

from collections.abc import Mapping


class LabelIndex:
    """Ids by each of their labels, in the order they came."""

    def __init__(self) -> None:
        self._ids: dict[tuple[str, str], dict[str, None]] = {}

    def add(self, id_: str, labels: Mapping[str, str]) -> None:
        for pair in labels.items():
            self._ids.setdefault(pair, {})[id_] = None

    def discard(self, id_: str, labels: Mapping[str, str]) -> None:
        for pair in labels.items():
            ids = self._ids[pair]
            del ids[id_]
            if not ids:
                del self._ids[pair]

    def matching(self, labels: Mapping[str, str]) -> dict[str, None]:
        """Those that bear all these labels. Costs as much as the rarest of them."""
        sets = sorted((self._ids.get(pair, {}) for pair in labels.items()), key=len)
        return {id_: None for id_ in sets[0] if all(id_ in other for other in sets[1:])}
