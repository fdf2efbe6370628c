"""The table of `--stats`: what the guest made pyvmm do."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.session import Session


def render(session: Session) -> str:
    """Exits by kind and register, requests and bytes by device, assists by kind with their time."""
    lines = ["exits"]
    for name, count in sorted(session.exits.items(), key=lambda item: -item[1]):
        lines.append(f"  {count:>10}  {name}")
    if session.devices.counts:
        lines.append("devices")
        lines += [f"  {count:>10}  {name}" for name, count in sorted(session.devices.counts.items())]
    assists = session.assists
    if assists.counts:
        lines.append("assists" + " " * 30 + "total ms    mean us")
        for name, count in sorted(assists.counts.items(), key=lambda item: -item[1]):
            seconds = assists.seconds.get(name, 0.0)
            lines.append(f"  {count:>10}  {name:<22}  {seconds * 1e3:>8.1f}  {seconds / count * 1e6:>9.1f}")
    return "\n".join(lines) + "\n"
