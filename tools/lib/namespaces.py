"""Hosts out of one machine: namespaces of Linux, joined by a switch.

A host is a first process with network, host name, processes, memory files, mounts and clock of its own. Everything lives in
one more process namespace whose end ends all of it: the kernel then takes namespaces and links away, however the tool died.
Nothing outside is changed, and nothing has a name that could be left behind.
"""
import ctypes
import os
import shutil
import signal
import subprocess
import traceback
from pathlib import Path

MOUNT, UTS, IPC, USER, PID, NET, TIME = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000, 0x80
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_MOVE, MS_REC, MS_PRIVATE = 2, 4, 8, 4096, 8192, 16384, 1 << 18
PR_SET_PDEATHSIG = 1
NETWORK = "10.77.0"  # nobody outside can see it
SWITCH = 254
MOST_HOSTS = 200
CLOCK_STEP = (1000, 123_456_789)  # seconds and nanoseconds by which a host's clock is ahead of the one before

libc = ctypes.CDLL(None, use_errno=True)


class NotPermitted(Exception):
    """This process may not make hosts here; says what would help."""


def system(name, *arguments):
    if getattr(libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def mount(source, target, kind, flags, options=""):
    try:
        system("mount", source.encode(), str(target).encode(), kind.encode(), ctypes.c_ulong(flags), options.encode())
    except OSError as error:
        raise OSError(error.errno, f"mounting {kind or source} at {target}: {os.strerror(error.errno)}") from None


def run(*command):
    """A command of iproute2; throws OSError with what it said."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        said = " ".join((done.stderr or done.stdout).split())
        raise OSError(0, f"`{' '.join(map(str, command))}` failed: {said}")


def missing_programs():
    packages = {"ip": "iproute2", "tc": "iproute2", "nsenter": "util-linux", "taskset": "util-linux"}
    return [f"{name} (package {package})" for name, package in packages.items() if not shutil.which(name)]


def enter_world():
    """Leaves the machine's namespaces: the next child is the first process of a world in which hosts can be made."""
    user, group = os.geteuid(), os.getegid()
    try:
        if user != 0:
            system("unshare", USER)
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {user} 1")
            Path("/proc/self/gid_map").write_text(f"0 {group} 1")
        system("unshare", NET | UTS | IPC | MOUNT | PID)
    except OSError as error:
        raise NotPermitted(f"namespaces may not be made here ({error.strerror}): it takes root with CAP_SYS_ADMIN and "
                           "CAP_NET_ADMIN, or user namespaces (kernel.unprivileged_userns_clone, user.max_user_namespaces; "
                           "in a container: --privileged)") from None


def private_mounts(etc_hosts=None):
    """Of the namespaces that this process is in: /proc, /dev/shm, /sys; and the names of all hosts."""
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount("none", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    if etc_hosts:
        names = Path("/dev/shm/hosts")
        names.write_text(etc_hosts)
        mount(str(names), "/etc/hosts", "", MS_BIND)
        return
    # /sys lists the network devices of who mounted it. The CPU quotas below it are the machine's.
    aside = Path("/dev/shm/cgroup")
    groups = Path("/sys/fs/cgroup")
    if groups.is_dir():
        aside.mkdir()
        mount(str(groups), aside, "", MS_BIND | MS_REC)
    mount("none", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    if aside.is_dir():
        mount(str(aside), groups, "", MS_MOVE)
        aside.rmdir()


class Host:
    """Made by the first process of the world. Raises OSError when a step is not allowed."""

    def __init__(self, number, cores, rate_mbit):
        self.name = f"host{number}"
        self.address = f"{NETWORK}.{number}"
        self.cores = cores
        self.pid = self._start(number)
        self._connect(number, rate_mbit)

    def _start(self, number):
        """The process id of the host's first process, which does nothing but live and reap."""
        read, write = os.pipe()
        child = os.fork()
        if child == 0:  # namespaces of processes and clocks are entered by children only
            self._become_host(number, write)
        os.close(write)
        with os.fdopen(read) as pipe:
            lines = pipe.read().split("\n")  # in any order: the two processes write at the same time
        os.waitpid(child, 0)
        numbers = [line for line in lines if line.isdecimal()]
        if "ready" not in lines or not numbers:
            raise OSError(0, f"making {self.name}: {' '.join(line for line in lines if not line.isdecimal()).strip()}")
        return int(numbers[0])

    def _become_host(self, number, write):
        try:
            system("unshare", NET | UTS | IPC | MOUNT | PID)
            if os.path.exists("/proc/self/ns/time"):
                system("unshare", TIME)
                seconds, nanoseconds = (number * part for part in CLOCK_STEP)
                seconds, nanoseconds = seconds + nanoseconds // 10**9, nanoseconds % 10**9
                Path("/proc/self/timens_offsets").write_text(f"monotonic {seconds} {nanoseconds}\nboottime {seconds} {nanoseconds}\n")
            first = os.fork()
            if first:
                os.write(write, f"{first}\n".encode())
                os._exit(0)
            private_mounts()
            system("sethostname", self.name.encode(), len(self.name))
            os.write(write, b"ready\n")
        except OSError as error:
            os.write(write, f"{error.strerror}\n".encode())
            os._exit(1)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # what is orphaned here is reaped at once
        for stream in (0, 1, 2, write):
            os.close(stream)
        while True:
            signal.pause()

    def _connect(self, number, rate_mbit):
        inside = ("nsenter", "--target", self.pid, "--net")
        port = f"port{number}"
        run("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", self.pid)
        run("ip", "link", "set", port, "master", "switch", "up")
        run(*inside, "ip", "address", "add", f"{self.address}/24", "dev", "eth0")
        run(*inside, "ip", "link", "set", "eth0", "up")
        run(*inside, "ip", "link", "set", "lo", "up")
        if rate_mbit:
            # Both ways. A burst holds 64 KB, the largest packet that a veth carries; who sends more than the link takes
            # is held back when 100 ms are waiting.
            shape = ("root", "tbf", "rate", f"{rate_mbit}mbit", "burst", "64kb", "latency", "100ms")
            run(*inside, "tc", "qdisc", "add", "dev", "eth0", *shape)
            run("tc", "qdisc", "add", "dev", port, *shape)


def share_of_cores(number, hosts, cores):
    """The cores of host `number` (from 1): equal shares; one each when there are more hosts than cores."""
    if hosts > len(cores):
        return [cores[(number - 1) % len(cores)]]
    return cores[(number - 1) * len(cores) // hosts : number * len(cores) // hosts]


def build(hosts, rate_mbit, share_cores):
    """A switch, at which this process is, and the hosts at it. To be called by the first process of a world."""
    cores = sorted(os.sched_getaffinity(0))
    try:
        names = [(SWITCH, "login")] + [(number, f"host{number}") for number in range(1, hosts + 1)]
        private_mounts("127.0.0.1 localhost\n" + "".join(f"{NETWORK}.{number} {name}\n" for number, name in names))
        system("sethostname", b"login", 5)
        run("ip", "link", "set", "lo", "up")
        run("ip", "link", "add", "switch", "type", "bridge")
        run("ip", "link", "set", "switch", "up")
        run("ip", "address", "add", f"{NETWORK}.{SWITCH}/24", "dev", "switch")
        return [Host(number, share_of_cores(number, hosts, cores) if share_cores else cores, rate_mbit)
                for number in range(1, hosts + 1)]
    except OSError as error:
        raise NotPermitted(f"{error.strerror}: it takes CAP_SYS_ADMIN and CAP_NET_ADMIN, and a kernel with namespaces, veth, "
                           "bridge and, for --mbit, sch_tbf") from None


def first_process_of_world(work):
    """Calls work() in a new child of this process, which is to have entered a world, and returns its exit code.

    SIGTERM, SIGINT and SIGHUP are handed to it. When this process dies, so does everything below it.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            os.setsid()  # a Ctrl-C comes once, through the parent
            code = work()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda n, _: os.kill(child, n))
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
