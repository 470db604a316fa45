"""A hardened unit that starts the server as planned and fails when it is served otherwise."""

from __future__ import annotations

import re
from pathlib import Path

from quantplan.errors import CannotExport
from quantplan.llama import server_flags as flags
from quantplan.serving.bind import is_loopback
from quantplan.serving.export.deployment import Deployment, GpuNeed
from quantplan.serving.export.exported import Exported, Exporter, File, Need
from quantplan.serving.runtimes import url_of

KEY_FILE = "/etc/quantplan/{name}.key"
_HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # by ProtectHome= and PrivateTmp=
_CHECK_S = 120  # the contract check after the load: it hashes the model once
_STOP_S = 10  # serving.launch: what the engine has to end
_HARDENED = """\
UMask=0077
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
ProtectHome=tmpfs
PrivateTmp=yes
PrivateUsers=yes
PrivateIPC=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
ProcSubset=all
RemoveIPC=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
KeyringMode=private
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
"""


def write(deployments: tuple[Deployment, ...]) -> Exported:
    """One unit. Raises CannotExport for cards that no Linux service can be given."""
    (told,) = deployments
    parts = (_unit(told), _service(told), _limits(told), _devices(told), _network(told), _HARDENED, _paths(told),
             _install(), _marks(told))  # fmt: skip
    return Exported(files=(File(name=f"{told.name}.service", text="".join(parts)),), notes=_notes(told))


def _unit(told: Deployment) -> str:
    return (
        "[Unit]\n"
        f"Description=llama-server: {_escaped(told.title)}, {told.plan.n_parallel} slot(s) of "
        f"{told.plan.n_ctx_per_slot} tokens\n"
        "After=network-online.target\nWants=network-online.target\n"
        "StartLimitIntervalSec=3600\nStartLimitBurst=5\n"
        f"AssertPathExists={_escaped(str(told.where(told.model)))}\n\n"
    )


def _service(told: Deployment) -> str:
    target = told.target
    host = target.host or "127.0.0.1"
    start = told.argv(target.program, host=host, port=target.port, api_key_file="%d/api-key")
    public = () if is_loopback(host) else ("--public",)
    check = (*target.quantplan, "verify-serving", url_of(host, target.port), "--plan", str(_plan_file(told)),
             "--model", str(told.where(told.model)), "--api-key-file", "%d/api-key", "--require", "local",
             "--wait", str(target.load_s), *public)  # fmt: skip
    key = target.api_key_file or KEY_FILE.format(name=told.name)
    return (
        "[Service]\nType=exec\nDynamicUser=yes\n"
        f"LoadCredential=api-key:{_escaped(key)}\n"
        f"UnsetEnvironment={' '.join(_variables())}\n"
        "Environment=XDG_CONFIG_HOME=/nonexistent GGML_NO_BACKTRACE=1 LC_ALL=C.UTF-8\n"
        f"ExecStart={_command(start)}\n"
        f"ExecStartPost={_command(check)}\n"
        f"TimeoutStartSec={target.load_s + _CHECK_S}\n"
        f"KillSignal=SIGINT\nTimeoutStopSec={target.drain_s + _STOP_S}\n"
        "Restart=on-failure\nRestartSec=5\nOOMPolicy=stop\n\n"
    )


def _plan_file(told: Deployment) -> Path:
    """Where the plan lies on the target: beside the model, where it does so here."""
    return Path(told.on_target) / told.plan_file.name if told.plan_file.parent == told.folder else told.plan_file


def _variables() -> tuple[str, ...]:
    """What would speak for a flag or change kernels and threads, if the manager had it."""
    own = {flag.variable for flag in flags.PLANNED_FLAGS if flag.variable}
    return (*sorted(own), "LLAMA_API_KEY", "OMP_NUM_THREADS", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")


def _limits(told: Deployment) -> str:
    lines = [
        f"MemoryHigh={told.memory_high_bytes}", f"MemoryMax={told.memory_max_bytes}", "MemorySwapMax=0",
        f"CPUQuota={told.cpus * 100}%", f"TasksMax={told.cpus * 4 + 256}", "LimitNOFILE=65536", "LimitCORE=0",
    ]  # fmt: skip
    if told.plan.cpu_range:
        lines.append(f"AllowedCPUs={told.plan.cpu_range}")
    if told.locks_memory:
        lines.append("LimitMEMLOCK=infinity")
    return "\n".join(lines) + "\n\n"


def _devices(told: Deployment) -> str:
    """The cards and nothing else; without cards no device, and no memory that is written and run."""
    if told.gpu is None:
        return "PrivateDevices=yes\nMemoryDenyWriteExecute=yes\n"
    allowed = "".join(f"DeviceAllow={node} rw\n" for node in _nodes(told.gpu))
    return f"SupplementaryGroups=video render\nDevicePolicy=closed\n{allowed}"


def _nodes(gpu: GpuNeed) -> tuple[str, ...]:
    nvidia = ("char-nvidiactl", "char-nvidia-frontend", "char-nvidia-caps", "char-nvidia-uvm")
    if gpu.backend == "cuda":
        return (*nvidia, "char-drm")
    if gpu.backend == "rocm":
        return ("/dev/kfd", "char-drm")
    if gpu.backend == "vulkan":
        return ("char-drm", *nvidia)
    if gpu.backend == "sycl":
        return ("char-drm",)
    raise CannotExport(target="systemd", why=f"{gpu.names[0]} is a card of macOS, which has no systemd",
                       instead="serve it with quantplan there")  # fmt: skip


def _network(told: Deployment) -> str:
    if is_loopback(told.target.host or "127.0.0.1"):
        return "IPAddressDeny=any\nIPAddressAllow=localhost\n"
    return ""


def _paths(told: Deployment) -> str:
    """What the service reads of folders that it does not see otherwise; the models in any case."""
    folders = [str(told.on_target), *(str(told.where(file).parent) for file in told.files)]
    also = (str(_plan_file(told).parent), str(Path(told.target.program[0]).parent), *map(str, told.target.checker))
    folders += [path for path in also if path.startswith(tuple(f"{hidden}/" for hidden in _HIDDEN))]
    return "".join(f"BindReadOnlyPaths={_path(folder)}\n" for folder in dict.fromkeys(folders))


def _install() -> str:
    return "\n[Install]\nWantedBy=multi-user.target\n\n"


def _marks(told: Deployment) -> str:
    lines = "".join(f"{name}={_escaped(value)}\n" for name, value in told.marks.items())
    return f"[X-Quantplan]\n{lines}"


def _notes(told: Deployment) -> tuple[str, ...]:
    key = told.target.api_key_file or KEY_FILE.format(name=told.name)
    notes = [f"the keys lie in {key}: make that file (root, mode 0600) before the first start"]
    if not is_loopback(told.target.host or "127.0.0.1"):
        notes.append("other machines reach it: the unit leaves the addresses open, a firewall has to choose them")
    if told.gpu is not None:
        notes.append("a card's driver writes code into memory and runs it: MemoryDenyWriteExecute= is left out")
    unreadable = [file.path.name for file in told.files if not file.world_readable]
    if unreadable:
        notes.append(
            f"{', '.join(unreadable)} may not be read by the unit's own user: chmod o+r, and o+x on its folder"
        )
    return tuple(notes)


def _needs(told: Deployment) -> tuple[Need, ...]:
    allowed = (Need(version=(244,), what="AllowedCPUs="),) if told.plan.cpu_range else ()
    return (Need(version=(248,), what="PrivateIPC="), Need(version=(247,), what="LoadCredential="), *allowed)


# ---- words


def _command(argv: tuple[str, ...]) -> str:
    """A command over several lines: the program with what comes before its first flag, then a flag a line."""
    lines, line = [], ""
    for index, word in enumerate(argv):
        if index and re.match(r"--\w", word):
            lines.append(line)
            line = f"    {_word(word)}"
        else:
            line = f"{line} {_word(word)}" if line else _word(word)
    return " \\\n".join([*lines, line])


def _word(word: str) -> str:
    """A word of a command line: systemd.service(5), with specifiers and variables taken literally but for the
    credentials' folder."""
    own = word.startswith("%d/")
    text = word[3:] if own else word
    text = text.replace("%", "%%").replace("$", "$$").replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    if re.fullmatch(r"[\w%@+=:,./-]+", text):
        return f"%d/{text}" if own else text
    return f'"{text}"'


def _path(path: str) -> str:
    """A path in a list of paths: a colon would begin another one."""
    text = path.replace("\\", "\\\\").replace(":", "\\:").replace('"', '\\"').replace("%", "%%")
    return f'"{text}"' if re.search(r"[\s'\"]", text) else text


def _escaped(text: str) -> str:
    return text.replace("%", "%%")


EXPORTER = Exporter(target="systemd", write=write, needs=_needs)
