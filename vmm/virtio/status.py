"""The device status field as a state machine: all its transitions, and nothing else."""

from __future__ import annotations

from vmm.errors import GuestFault
from vmm.virtio.spec import Status

_START = 0
_SEEN = Status.ACKNOWLEDGE
_DRIVEN = _SEEN | Status.DRIVER
_NEGOTIATED = _DRIVEN | Status.FEATURES_OK
_LIVE = _NEGOTIATED | Status.DRIVER_OK


class Step:
    """What the device has to do before a transition counts."""

    NOTHING = "nothing"
    RESET = "reset"
    STOP = "stop"
    CHECK_FEATURES = "check features"
    ACTIVATE = "activate"


#: (status, value written) -> step. Whatever is not here is an error of the driver (VIRTIO 1.2 §3.1.1, §2.1.1).
#: Firmware sets ACKNOWLEDGE and DRIVER in one write; writing what is already there changes nothing.
TRANSITIONS: dict[tuple[int, int], str] = {
    (_START, _SEEN): Step.NOTHING,
    (_START, _DRIVEN): Step.NOTHING,
    (_SEEN, _SEEN): Step.NOTHING,
    (_SEEN, _DRIVEN): Step.NOTHING,
    (_DRIVEN, _DRIVEN): Step.NOTHING,
    (_DRIVEN, _NEGOTIATED): Step.CHECK_FEATURES,
    (_NEGOTIATED, _NEGOTIATED): Step.NOTHING,
    (_NEGOTIATED, _LIVE): Step.ACTIVATE,
    (_LIVE, _LIVE): Step.NOTHING,
}


def status_names(value: int) -> str:
    """The status bits in *value* by their names, for the trace."""
    names = [name for name, bit in vars(Status).items() if name.isupper() and value & bit]
    return "|".join(names) or f"{value:#x}"


class StatusMachine:
    """The status field of one device. Pure: it tells its owner which step to take, and takes none itself."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = _START

    @property
    def features_ok(self) -> bool:
        """Whether negotiation is over: features are fixed."""
        return bool(self.value & Status.FEATURES_OK)

    @property
    def driver_ok(self) -> bool:
        """Whether the driver has set the device going."""
        return bool(self.value & Status.DRIVER_OK)

    @property
    def broken(self) -> bool:
        """Whether only a reset helps: the device needs one, or the driver gave up."""
        return bool(self.value & (Status.DEVICE_NEEDS_RESET | Status.FAILED))

    def write(self, value: int) -> str:
        """The driver writes *value*; the status follows, and the answer is the `Step` that is due.

        The owner that refuses `Step.CHECK_FEATURES` calls `refuse_features`. DEVICE_NEEDS_RESET is the device's own
        bit: drivers write it back with the others and that means nothing.

        Raises:
            GuestFault: there is no such transition; the status stays as it was.
        """
        if value == 0:
            self.value = _START
            return Step.RESET
        if value & Status.FAILED:
            self.value |= Status.FAILED
            return Step.STOP
        current = self.value & ~Status.DEVICE_NEEDS_RESET
        wanted = value & ~Status.DEVICE_NEEDS_RESET
        step = TRANSITIONS.get((current, wanted))
        if step is None or (self.broken and wanted != current):
            raise GuestFault(f"status {value:#x} written while it is {self.value:#x}")
        self.value |= wanted
        return step

    def refuse_features(self) -> None:
        """Leave FEATURES_OK clear: the driver reads it back and gives up or tries fewer (VIRTIO 1.2 §3.1.1)."""
        self.value &= ~Status.FEATURES_OK

    def need_reset(self) -> None:
        """Set DEVICE_NEEDS_RESET."""
        self.value |= Status.DEVICE_NEEDS_RESET
