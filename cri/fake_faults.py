"""What the fake runtime is told to do wrong.

One rule: a fault is about the wire and the time, never about the state: what a call did can always be found by listing.
"""

from dataclasses import dataclass, field, replace

import grpc

EVERY_METHOD = "*"


@dataclass(frozen=True)
class Fault:
    """How the next calls of a method go wrong."""

    method: str
    """CRI's name, such as RunPodSandbox; `*` for all."""
    delay_s: float = 0.0
    """Before anything is done. Given up by the client meanwhile, the call does nothing (see done_anyway)."""
    code: grpc.StatusCode | None = None
    """Fails with this; None: succeeds, late."""
    message: str = "told to fail"
    times: int | None = None
    """For how many calls; None: until cleared."""
    done_anyway: bool = False
    """Does its work although the client gave up waiting, or is told that it failed."""
    answer_s: float = 0.0
    """After it was done, before the client is told."""
    unfounded: bool = False
    """Says that it is done, and does nothing. Only for calls that answer nothing: start, stop, remove."""


@dataclass
class Faults:
    """The faults in force. Change them at any time."""

    lose_events: bool = False
    """Nobody is told of changes any more; the stream stays open."""
    no_events: bool = False
    """GetContainerEvents is not implemented, as before CRI v0.24."""
    report_handler: str | None = None
    """Sandboxes made from now on say that they run on this handler."""
    met: int = 0
    """How many calls a fault has met."""
    _faults: list[Fault] = field(default_factory=list)

    def add(self, fault: Fault) -> None:
        """Holds from the next call on. Of several for a method, the one added first goes first."""
        self._faults.append(fault)

    def clear(self) -> None:
        self._faults.clear()
        self.lose_events = False
        self.no_events = False
        self.report_handler = None

    def next(self, method: str) -> Fault | None:
        """The fault that this call meets; it is used up by one."""
        for index, fault in enumerate(self._faults):
            if fault.method not in {method, EVERY_METHOD}:
                continue
            if fault.times is not None:
                left = fault.times - 1
                self._faults[index : index + 1] = [replace(fault, times=left)] if left > 0 else []
            self.met += 1
            return fault
        return None
