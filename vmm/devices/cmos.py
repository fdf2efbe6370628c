"""The real-time clock and its CMOS memory (Motorola MC146818): index port 0x70, data port 0x71.

The clock is the host's in UTC, plus what the guest has set it off by. Alarm (AIE) and update-ended (UIE) interrupts
work; the periodic interrupt is refused (PIE stays 0): at up to 8192 Hz it would cost the host more than any guest
needs it, and kernels use their own timers.
"""

from __future__ import annotations

import time

from vmm.regs import RegisterBlock, register

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from vmm.irq import IrqLine
    from vmm.state import State

SIZE = 2

_SECONDS, _SECONDS_ALARM, _MINUTES, _MINUTES_ALARM, _HOURS, _HOURS_ALARM = range(6)
_WEEKDAY, _DAY, _MONTH, _YEAR, _A, _B, _C, _D = range(6, 14)
_CENTURY = 0x32  # where the FADT says it is
_TIME = (_SECONDS, _MINUTES, _HOURS, _WEEKDAY, _DAY, _MONTH, _YEAR, _CENTURY)
_BASE_MEMORY_KIB, _EXTENDED_MEMORY_KIB, _EXTENDED_MEMORY_KIB_2 = 0x15, 0x17, 0x30
_MEMORY_ABOVE_16M_64KIB, _MEMORY_ABOVE_4G_64KIB = 0x34, 0x5B

_A_UPDATE_IN_PROGRESS, _A_32768_HZ = 0x80, 0x26
_B_SET, _B_PIE, _B_AIE, _B_UIE, _B_BINARY, _B_24_HOURS = 0x80, 0x40, 0x20, 0x10, 0x04, 0x02
_C_IRQF, _C_AF, _C_UF = 0x80, 0x20, 0x10
_D_VALID = 0x80
_HOURS_PM = 0x80
_ALARM_ANY = 0xC0  # an alarm byte with both bits set matches always
_DAY_S = 86400
#: The registers are said to be updating in the last 2 ms of each second, for drivers that wait to see it.
_UPDATE_AT = 0.998


class Cmos(RegisterBlock):
    """The RTC of a machine with *low_memory_bytes* of RAM below 4 GiB and *high_memory_bytes* above.

    *call_later(delay_s, callback, lock)* runs *callback* once, later, holding *lock*; *clock* gives the host's time
    in seconds since 1970.
    """

    name = "cmos"
    kept = ("_index", "_memory", "_offset_s", "_checked_s")

    def __init__(
        self,
        irq: IrqLine,
        call_later: Callable[[float, Callable[[], None], threading.Lock], None],
        low_memory_bytes: int,
        high_memory_bytes: int = 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__()
        self._irq = irq
        self._call_later = call_later
        self._clock = clock
        self._index = _D
        self._memory = bytearray(128)
        self._memory[_A] = _A_32768_HZ
        self._memory[_B] = _B_24_HOURS
        self._describe_ram(low_memory_bytes, high_memory_bytes)
        self._offset_s = 0
        self._setting: dict[int, int] | None = None  # the time registers while the guest holds B.SET
        self._checked_s = self._now_s()  # alarms up to this second have been looked at
        self._ticking = False

    def state(self) -> State:
        """As `RegisterBlock.state`."""
        return super().state() | {"setting": None if self._setting is None else list(self._setting.values())}

    def restore(self, state: State) -> None:
        """As `RegisterBlock.restore`. The clock is right: the guest's offset from the host's clock is kept."""
        super().restore(state)
        setting = state["setting"]
        self._setting = None if setting is None else dict(zip(_TIME, map(int, setting), strict=True))

    def revive(self) -> None:
        """As `RegisterBlock.revive`."""
        if self._memory[_C] & _C_IRQF:
            self._irq.pulse()
        self._tick_on()

    @register(0, "INDEX", width=1)
    def index(self) -> int:
        return 0xFF  # write-only on a PC

    @index.writer
    def _write_index(self, value: int) -> None:
        self._index = value & 0x7F  # bit 7 masks NMIs, of which there are none

    @register(1, "DATA", width=1)
    def data(self) -> int:
        index = self._index
        if index in _TIME:
            fields = self._fields() if self._setting is None else self._setting
            return self._encode(index, fields[index])
        if index == _A:
            updating = self._setting is None and self._clock() % 1 >= _UPDATE_AT
            return self._memory[_A] | (_A_UPDATE_IN_PROGRESS if updating else 0)
        if index == _C:
            self._catch_up()
            flags, self._memory[_C] = self._memory[_C], 0
            return flags
        return _D_VALID if index == _D else self._memory[index]

    @data.writer
    def _write_data(self, value: int) -> None:
        index = self._index
        if index in _TIME:
            fields = self._fields() if self._setting is None else self._setting
            fields[index] = self._decode(index, value)
            if self._setting is None:
                self._set_time(fields)
        elif index == _A:
            self._memory[_A] = value & ~_A_UPDATE_IN_PROGRESS
        elif index == _B:
            self._write_control(value)
        elif index not in (_C, _D):
            self._catch_up()  # an alarm that is changed still counts for the seconds that have passed
            self._memory[index] = value

    def _write_control(self, value: int) -> None:
        self._catch_up()
        value &= ~_B_PIE
        if value & _B_SET:
            value &= ~_B_UIE
            if self._setting is None:
                self._setting = self._fields()
        elif self._setting is not None:
            fields, self._setting = self._setting, None
            self._set_time(fields)
        self._memory[_B] = value
        self._signal()
        self._tick_on()

    # Time.

    def _now_s(self) -> int:
        return int(self._clock()) + self._offset_s

    def _fields(self) -> dict[int, int]:
        """The time registers' values, not yet encoded; hours 0-23, Sunday is day 1."""
        now = time.gmtime(self._now_s())
        weekday = (now.tm_wday + 1) % 7 + 1
        century, year = divmod(min(max(now.tm_year, 0), 9999), 100)  # the guest may have set it to anything
        fields = (now.tm_sec, now.tm_min, now.tm_hour, weekday, now.tm_mday, now.tm_mon, year, century)
        return dict(zip(_TIME, fields, strict=True))

    def _set_time(self, fields: dict[int, int]) -> None:
        days = _days_since_1970(fields[_CENTURY] * 100 + fields[_YEAR], fields[_MONTH], fields[_DAY])
        seconds = days * _DAY_S + fields[_HOURS] * 3600 + fields[_MINUTES] * 60 + fields[_SECONDS]
        self._offset_s = seconds - int(self._clock())
        self._checked_s = seconds

    def _encode(self, index: int, value: int) -> int:
        afternoon = 0
        if index == _HOURS and not self._memory[_B] & _B_24_HOURS:
            afternoon = _HOURS_PM if value >= 12 else 0
            value = (value - 1) % 12 + 1
        if not self._memory[_B] & _B_BINARY:
            value = value // 10 << 4 | value % 10
        return value | afternoon

    def _decode(self, index: int, value: int) -> int:
        """The number that byte *value* of a time or alarm register means; at most 165, whatever the guest wrote."""
        afternoon = None
        if index in (_HOURS, _HOURS_ALARM) and not self._memory[_B] & _B_24_HOURS:
            afternoon, value = bool(value & _HOURS_PM), value & ~_HOURS_PM
        if not self._memory[_B] & _B_BINARY:
            value = (value >> 4) * 10 + (value & 0x0F)
        if afternoon is not None:
            value = value % 12 + (12 if afternoon else 0)
        return min(value, 99) if index in (_YEAR, _CENTURY) else value

    # Interrupts.

    def _catch_up(self) -> None:
        """Set the flags of what happened since the last look: seconds passed, the alarm's time among them or not."""
        now = self._now_s()
        first, self._checked_s = self._checked_s + 1, now
        if self._setting is not None or now < first:
            return
        self._memory[_C] |= _C_UF
        # A day holds every time of day; no need to look further back.
        if any(self._is_alarm(second) for second in range(max(first, now - _DAY_S + 1), now + 1)):
            self._memory[_C] |= _C_AF
        self._signal()

    def _is_alarm(self, now_s: int) -> bool:
        minutes, seconds = divmod(now_s % _DAY_S, 60)
        hours, minutes = divmod(minutes, 60)
        for index, now in ((_SECONDS_ALARM, seconds), (_MINUTES_ALARM, minutes), (_HOURS_ALARM, hours)):
            alarm = self._memory[index]
            if alarm & _ALARM_ANY != _ALARM_ANY and self._decode(index, alarm) != now:
                return False
        return True

    def _signal(self) -> None:
        """Raise the interrupt when a flag is set and enabled, once until the guest reads register C."""
        flags = self._memory[_C]
        if flags & self._memory[_B] & (_C_AF | _C_UF) and not flags & _C_IRQF:
            self._memory[_C] |= _C_IRQF
            self._irq.pulse()

    def _tick_on(self) -> None:
        """While an interrupt is enabled, look once a second, just after it begins; one timer at most."""
        if self._ticking or not self._memory[_B] & (_B_AIE | _B_UIE):
            return
        self._ticking = True
        self._call_later(1.0 - self._clock() % 1, self._tick, self.lock)

    def _tick(self) -> None:
        self._ticking = False
        self._catch_up()
        self._tick_on()

    def _describe_ram(self, low_bytes: int, high_bytes: int) -> None:
        """The sizes of RAM where firmware leaves them for boot loaders and kernels."""

        def store(index: int, size: int, value: int) -> None:
            self._memory[index : index + size] = min(value, (1 << 8 * size) - 1).to_bytes(size, "little")

        store(_BASE_MEMORY_KIB, 2, 640)
        store(_EXTENDED_MEMORY_KIB, 2, max(0, low_bytes - (1 << 20)) >> 10)
        store(_EXTENDED_MEMORY_KIB_2, 2, max(0, low_bytes - (1 << 20)) >> 10)
        store(_MEMORY_ABOVE_16M_64KIB, 2, max(0, low_bytes - (16 << 20)) >> 16)
        store(_MEMORY_ABOVE_4G_64KIB, 3, high_bytes >> 16)


def _days_since_1970(year: int, month: int, day: int) -> int:
    """Days from 1970-01-01 in the Gregorian calendar; numbers out of range count on, a bad month as the nearest."""
    month = min(max(month, 1), 12)
    year -= month <= 2
    day_of_year = (153 * (month - 3 if month > 2 else month + 9) + 2) // 5 + day - 1  # from 1 March
    return year * 365 + year // 4 - year // 100 + year // 400 + day_of_year - 719468
