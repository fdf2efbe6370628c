"""The virtio devices of a machine, each with the engine that serves it."""

from __future__ import annotations

from vmm.virtio.rng import RngDevice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.eventloop import EventLoop
    from vmm.session import Session
    from vmm.virtio.blk import BlkDevice
    from vmm.virtio.console import ConsoleDevice
    from vmm.virtio.device import VirtioDevice
    from vmm.virtio.net_native import NativePath
    from vmm.virtio.net_python import PythonPath


def blk_devices(session: Session, loop: EventLoop, on_stall: Callable[[str], None]) -> list[BlkDevice]:
    """The disks, in the order of the command line; *on_stall* is told of a write that fails and shall not."""
    if not session.backends.disks:
        return []
    device: type[BlkDevice]
    if session.native:
        from vmm.virtio.blk_native import NativeBlkDevice

        device = NativeBlkDevice
    else:
        from vmm.virtio.blk import BlkDevice

        device = BlkDevice
    devices = []
    for index, (disk, config) in enumerate(zip(session.backends.disks, session.config.disks, strict=True)):
        stall = on_stall if config.werror == "stop" else None
        made = device(f"vd{chr(97 + index)}", disk, loop, queues=config.queues, on_stall=stall)
        made.set_limits(config.iops, config.bw)
        devices.append(made)
    return devices


def other_devices(session: Session, loop: EventLoop) -> list[VirtioDevice]:
    """The network cards, the entropy device and the sockets."""
    devices: list[VirtioDevice] = []
    if session.backends.nets:
        from vmm.virtio.net import NetDevice

        path_type: type[NativePath | PythonPath]
        if session.native:
            from vmm.virtio.net_native import NativePath

            path_type = NativePath
        else:
            from vmm.virtio.net_python import PythonPath

            path_type = PythonPath
        for index, ((uplink, mac), config) in enumerate(zip(session.backends.nets, session.config.nets, strict=True)):
            path = path_type(uplink, loop)
            path.set_limits(config.limits)
            devices.append(NetDevice(f"eth{index}", uplink, loop, path, mac=mac, mtu=uplink.mtu))
    devices.append(RngDevice("rng"))
    if session.config.vsock is not None and session.backends.vsock is not None:
        from vmm.virtio.vsock import VsockDevice

        devices.append(VsockDevice("vsock", session.backends.vsock, loop, session.config.vsock.cid))
    return devices


def console_device(session: Session) -> ConsoleDevice | None:
    """The terminal's console, if it is not the serial port."""
    if session.config.console != "virtio":
        return None
    from vmm.host.terminal import window_size
    from vmm.virtio.console import ConsoleDevice

    return ConsoleDevice("console", session.backends.console, lambda: window_size(0))
