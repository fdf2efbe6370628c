"""Fixtures for pytest: `vm`, `vm_factory`, `vm_net`; the marker `vm`, options and ini keys. See docs/testing.md.

Loaded by every run of pytest on a host with pyvmm: what is only for tests with VMs is imported by them.
"""

from __future__ import annotations

import os

import pytest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from typing import Any

    from vmm.testing.lab import Lab, Session
    from vmm.testing.vm import VM

#: Options and ini keys: name, kind of ini key, help.
_SETTINGS = (
    ("kernel", "string", "kernel of the VMs, instead of an image's"),
    ("image", "string", "image of the VMs: micro (the default), debian, or a directory"),
    ("initrd", "string", "initial RAM disk of the VMs"),
    ("append", "string", "more of their kernels' command line"),
    ("disk", "linelist", "disk of the VMs, as pyvmm --disk takes it; may be given more than once"),
    ("cpus", "string", "number of their CPUs (1)"),
    ("memory", "string", "their RAM (256M)"),
    ("timeout", "string", "seconds that a command or another operation may take (60)"),
    ("boot-timeout", "string", "seconds that a guest may take until its agent answers (300)"),
    ("logdir", "string", "where to keep each VM's console and statistics"),
)
_session = pytest.StashKey["Session"]()
_lab = pytest.StashKey["Lab"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--pyvmm-NAME` and `pyvmm_NAME`."""
    group = parser.getgroup("pyvmm", "virtual machines (pyvmm)")
    for name, kind, told in _SETTINGS:
        action = "append" if kind == "linelist" else "store"
        group.addoption(f"--pyvmm-{name}", action=action, default=None, help=told)
        parser.addini(f"pyvmm_{name.replace('-', '_')}", told, type=kind, default=None)  # type: ignore[arg-type]
    group.addoption("--pyvmm-keep-failed", action="store_true", help="let the VMs of failing tests live on")
    parser.addini("pyvmm_require", "fail, instead of skip, where VMs cannot run", type="bool", default=False)


def pytest_configure(config: pytest.Config) -> None:
    """The marker; and `pyvmm://`, for testinfra if that is there."""
    if config.pluginmanager.hasplugin("pytest11.testinfra"):
        from testinfra.backend import BACKENDS

        BACKENDS["pyvmm"] = "vmm.testing.testinfra.PyvmmBackend"
    config.addinivalue_line(
        "markers",
        "vm(kernel=, image=, initrd=, append=, disks=, nets=, cpus=, memory=, transport=, options=, timeout=): "
        "what the VMs of this test are to be; the nearest marker wins",
    )


def pytest_unconfigure(config: pytest.Config) -> None:
    """No process is left."""
    session = config.stash.get(_session, None)
    if session is not None:
        session.close()


@pytest.fixture(scope="session")
def vm_prepare() -> Callable[[VM], object] | None:
    """What to do with a VM before its snapshot is taken: redefine this to give a function that takes a `VM`."""
    return None


@pytest.fixture
def vm_factory(
    request: pytest.FixtureRequest, vm_prepare: Callable[[VM], object] | None
) -> Iterator[Callable[..., VM]]:
    """Makes VMs that go on from the snapshot of the configuration which the marker, and its own arguments, tell."""
    from vmm.testing.lab import Lab

    config = request.config
    with Lab(_settled(config), request.node, vm_prepare) as lab:
        request.node.stash[_lab] = lab
        yield lab.vm
        if config.getoption("--pyvmm-keep-failed") and lab.failed:
            lab.keep()


@pytest.fixture
def vm(vm_factory: Callable[..., VM]) -> VM:
    """A VM of the test's own, as it was when it had booted."""
    return vm_factory()


@pytest.fixture
def vm_net(request: pytest.FixtureRequest, vm_factory: Callable[..., VM]) -> Callable[..., list[VM]]:
    """Makes VMs on a network of their own: `a, b = vm_net("a", "b")` find each other by these names."""
    del vm_factory  # whose end is that of all
    lab: Lab = request.node.stash[_lab]
    return lab.net


def _settled(config: pytest.Config) -> Session:
    """What the tests of this process share."""
    if _session not in config.stash:
        from vmm.testing.lab import Session

        settings: dict[str, Any] = {}
        for name, _, _ in _SETTINGS:
            given = config.getoption(f"--pyvmm-{name}")
            settings[name] = config.getini(f"pyvmm_{name.replace('-', '_')}") if given is None else given
        if settings["logdir"]:  # a test may be elsewhere
            settings["logdir"] = os.path.join(config.invocation_params.dir, settings["logdir"])
        required = config.getini("pyvmm_require") or "kvm" in os.environ.get("PYVMM_REQUIRE", "").split(",")
        config.stash[_session] = Session(settings, required=bool(required))
    return config.stash[_session]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """A guest that dies fails its test at once."""
    lab = item.stash.get(_lab, None)
    if lab is None:
        return (yield)
    with lab.watched():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What there is to know of a failing test's VMs goes with its report."""
    report = yield
    lab = item.stash.get(_lab, None)
    if lab is not None and call.when != "teardown":
        lab.failed = lab.failed or report.failed
        lab.tell(report, keep=item.config.getoption("--pyvmm-keep-failed"))
    return report
