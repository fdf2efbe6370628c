"""Who may import whom: the arrows of the architecture. A new arrow, or a new room without a rule, fails here.

All imports count, those under TYPE_CHECKING and those inside functions too.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator

import pytest

import vmm

ROOT = os.path.dirname(vmm.__file__)

FACTS = {"cache", "errors", "irq", "layout", "outcome", "regs", "state", "trace"}  # import nothing of ours
VALUES = FACTS | {"config", "mac"}
MECHANISMS = {"bus", "eventloop", "host", "memory"}
ROOMS = {"boot", "devices", "kvm", "virtio"}

#: Of the machine's composition.
PARTS = {
    *("consoles", "halt", "native", "parts", "pci", "processors", "runner", "session", "snapshot", "standstill"),
    "virtio_devices",
}

#: What each room may import besides itself.
MAY_IMPORT: dict[str, set[str]] = {
    **{fact: set() for fact in FACTS},
    "regs": {"state"},
    "mac": {"errors"},
    "config": FACTS | {"mac"},
    **dict.fromkeys(MECHANISMS, VALUES),
    **dict.fromkeys(ROOMS, VALUES | MECHANISMS),
    "native": set(),
    "virtio": VALUES | MECHANISMS | {"native"},
    "runner": VALUES | {"bus", "kvm", "memory"},
    "backends": VALUES | {"host"},
    "session": VALUES | {"backends", "kvm", "native", "snapshot"},
    "snapshot": VALUES | {"memory", "native"},
    "parts": VALUES | {"kvm", "runner", "virtio"},
    "consoles": VALUES | {"devices", "eventloop", "host", "session", "virtio"},
    "standstill": VALUES | {"eventloop", "runner", "virtio"},
    "virtio_devices": VALUES | MECHANISMS | {"session", "virtio"},
    "halt": {"eventloop", "kvm", "runner"},
    "processors": VALUES | {"boot", "kvm", "memory", "session"},
    "pci": VALUES | MECHANISMS | ROOMS,
    "machine": VALUES | MECHANISMS | ROOMS | PARTS,
    "api": VALUES | {"agent", "eventloop", "session"},
    "agent": {"errors"},
    "cli": VALUES | {"agent", "api", "machine", "session", "snapshot"},
    "testing": VALUES | {"agent", "api"},
    "__main__": {"cli"},
}

#: Single modules that may do more, and why.
EXCEPTIONS: dict[tuple[str, str], str] = {
    ("vmm.cli.disk", "vmm.host.disk.commit"): "overlays are made and written back without a machine",
    ("vmm.cli.disk", "vmm.host.disk.overlay_file"): "the same",
    ("vmm.api.output", "vmm.host.console"): "the log is what the console's tail is fed",
    ("vmm.cli.exec", "vmm.host.vsock"): "what the socket to the agent is called",
    ("vmm.testing.vm", "vmm.host.vsock"): "the same",
    ("vmm.testing.testinfra", "vmm.host.vsock"): "the same",
    ("vmm.cli.console", "vmm.host.terminal"): "a terminal joined with another process's machine",
    ("vmm.cli.doctor", "vmm.host.doctor"): "the doctor looks at the host where no machine can be built",
    ("vmm.cli.doctor", "vmm.kvm.doctor"): "the same",
    **{
        ("vmm.cli.net", f"vmm.host.net.{name}"): "networks are made without a machine"
        for name in (
            *("capture", "create", "guests", "link", "network", "networks", "nft", "persist", "physical"),
            *("shaping", "status", "store", "transaction"),
        )
    },
    ("vmm.cli.main", "vmm.kvm.assist.probe"): "which kind of host this is, is told without a machine",
    ("vmm.cli.snapshot", "vmm.kvm.assist.probe"): "the same",
    ("vmm.cli.warm", "vmm.kvm.assist.probe"): "the same",
    ("vmm.host.lan.switch", "vmm.native._engine"): "the switch is a program of its own; frames are moved in C",
    ("vmm.native.plain", "vmm.bus"): "it follows what is on the buses; machine puts it between them and the vCPUs",
    ("vmm.native.plain", "vmm.regs"): "the same",
    ("vmm.virtio.transport.pci", "vmm.devices.pci.config"): "a virtio device on PCI is a PCI function",
    ("vmm.virtio.transport.pci", "vmm.devices.pci.msix"): "the same",
    ("vmm.virtio.transport.pci_config", "vmm.devices.pci.config"): "the same",
    ("vmm.virtio.transport.pci_config", "vmm.devices.pci.msix"): "the same",
}


def modules() -> Iterator[tuple[str, str]]:
    """The dotted name and the path of each module of pyvmm."""
    for directory, _, files in os.walk(ROOT):
        package = ["vmm", *os.path.relpath(directory, ROOT).replace(".", "").split(os.sep)]
        for file in sorted(files):
            if file.endswith(".py"):
                yield ".".join(part for part in [*package, file[:-3]] if part), os.path.join(directory, file)


MODULES = dict(modules())


def imports(module: str, path: str) -> set[str]:
    """The modules of ours that *module* imports."""
    with open(path) as file:
        tree = ast.parse(file.read(), path)
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(module.split(".")[: -node.level]) if node.level else ""
            base = ".".join(part for part in (base, node.module) if part)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.add(inner if inner in MODULES or f"{inner}.__init__" in MODULES else base)
    return {name for name in found if name.split(".")[0] == "vmm"}


def room(module: str) -> str:
    """The room of *module*: the part of its name after `vmm`."""
    return module.split(".")[1] if "." in module else "__init__"


@pytest.mark.parametrize("module", MODULES)
def test_arrows(module: str) -> None:
    here = room(module)
    if here == "__init__":
        assert imports(module, MODULES[module]) == set()
        return
    assert here in MAY_IMPORT, f"{here} is a new room: say in MAY_IMPORT what it may import"
    allowed = MAY_IMPORT[here] | {here, "__init__"}
    wrong = {
        target
        for target in imports(module, MODULES[module])
        if room(target) not in allowed and (module, target) not in EXCEPTIONS
    }
    assert not wrong, f"{module} may not import {', '.join(sorted(wrong))}"


def test_every_exception_is_used() -> None:
    used = {(module, target) for module, path in MODULES.items() for target in imports(module, path)}
    assert set(EXCEPTIONS) <= used
