"""The start scripts on machines that are not this one: stub commands stand in for Python, nvidia-smi and uname."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
TOOLS = ("bash", "cat", "cksum", "cut", "dirname", "env", "grep", "head", "mkdir", "mv", "sort", "touch", "uname")


class Machine:
    """A checkout in a folder with a space in its name, and a PATH that holds only basic commands and stubs."""

    def __init__(self, folder: Path) -> None:
        self.checkout, self.path = folder / "the checkout", folder / "bin"
        self.path.mkdir()
        (self.checkout / "scripts").mkdir(parents=True)
        for name in ("pyproject.toml", "requirements-lock.txt"):
            (self.checkout / name).write_text(f"# {name}\n")
        for script in ("bootstrap.sh", "run_quickstart.sh", "run_tests.sh"):
            shutil.copy(REPOSITORY / "scripts" / script, self.checkout / "scripts")
        for tool in TOOLS:
            (self.path / tool).symlink_to(shutil.which(tool) or f"/bin/{tool}")

    def stub(self, name: str, body: str) -> None:
        """Put a command on the PATH."""
        (self.path / name).unlink(missing_ok=True)
        (self.path / name).write_text(f"#!/bin/bash\n{body}\n")
        (self.path / name).chmod(0o755)

    def stub_python(self, name: str = "python3", pip: str = "", ensurepip: str = "exit 0") -> None:
        """A Python 3.11 that makes an environment of itself and writes down how it is called."""
        body = f"""
echo "$*" >> '{self.checkout}/calls'
case "$*" in
  *"-m venv"*) mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
  *"-m pip"*install*) {pip} ;;
  *"import ensurepip"*) {ensurepip} ;;
  *platform*) echo arm64 ;;
  --version) echo Python 3.11.9 ;;
esac
"""
        self.stub(name, body)
        (self.path / "cp").unlink(missing_ok=True)
        (self.path / "cp").symlink_to(shutil.which("cp") or "/bin/cp")

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in another folder, with nothing but the stubs."""
        environment = {"PATH": str(self.path), "HOME": str(self.path)}
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=self.path)

    def call(self, function: str) -> subprocess.CompletedProcess[str]:
        """Call one function of bootstrap.sh."""
        return self.run("bash", "-c", f'source "{self.checkout}/scripts/bootstrap.sh"; {function}')

    def calls(self) -> list[str]:
        """How Python was called so far."""
        return (self.checkout / "calls").read_text().splitlines()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize(
    ("driver", "backend"),
    [
        ("echo 580.65.06", "cuda13"),
        ("echo 595.1", "cuda13"),
        ("echo 570.124.06; echo 570.124.06", "cuda12"),
        ("echo 550.54.14", "cuda12"),
        ("echo 550.54.09", "cpu"),
        ("echo 470.1", "cpu"),
        ("echo 'NVIDIA-SMI has failed because it could not talk to the driver'; exit 9", "cpu"),
    ],
)
def test_backend_follows_the_driver(machine: Machine, driver: str, backend: str) -> None:
    machine.stub("uname", "echo Linux")
    machine.stub("nvidia-smi", driver)
    result = machine.call("choose_backend")
    assert result.stdout.strip() == backend
    assert ("older than 550.54.14" in result.stderr) == (driver in ("echo 550.54.09", "echo 470.1"))


def test_backend_without_nvidia_is_the_cpu_and_a_mac_needs_none(machine: Machine) -> None:
    machine.stub("uname", "echo Linux")
    assert machine.call("choose_backend").stdout.strip() == "cpu"
    machine.stub("uname", "echo Darwin")
    assert machine.call("choose_backend").stdout.strip() == ""


def test_python_that_is_missing_old_or_a_stub_is_one_error_line(machine: Machine) -> None:
    machine.stub("python3.12", "echo 'command not found' >&2; exit 127")
    machine.stub("python3", f"exec {shutil.which('false')}")
    result = machine.run(str(machine.checkout / "scripts/run_tests.sh"))
    assert result.returncode == 2
    assert result.stderr.startswith("error: no Python 3.11 or newer found")
    assert result.stderr.count("\n") == 1
    assert not (machine.checkout / ".venv").exists()


def test_the_first_python_that_starts_is_taken(machine: Machine) -> None:
    machine.stub("python3.13", "exit 127")
    machine.stub("python3.11", f'exec "{sys.executable}" "$@"')
    assert machine.call("find_python").stdout.strip() == str(machine.path / "python3.11")


def test_no_ensurepip_and_no_pip_names_the_package(machine: Machine) -> None:
    machine.stub_python(ensurepip="exit 1")
    machine.stub("python3", (machine.path / "python3").read_text().replace("case", '[ "$2" = pip ] && exit 1\ncase', 1))
    result = machine.run(str(machine.checkout / "scripts/run_quickstart.sh"))
    assert result.returncode == 2
    assert "apt install python3-venv" in result.stderr


def test_quickstart_installs_once_and_trains(machine: Machine) -> None:
    machine.stub("uname", "echo Linux")
    machine.stub_python()
    quickstart = str(machine.checkout / "scripts/run_quickstart.sh")
    first, second = machine.run(quickstart), machine.run(quickstart, "--resume")
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "Installing into .venv [cpu]" in first.stdout
    assert "Installing" not in second.stdout
    train = "-m core.training --config configs/training/quickstart.yaml"
    trained = [call for call in machine.calls() if "core.training" in call]
    assert trained == [f"{train} --overwrite", f"{train} --resume"]
    installs = [call for call in machine.calls() if "pip install" in call]
    assert installs == ["-m pip install --quiet --disable-pip-version-check -c requirements-lock.txt -e .[cpu]"]


def test_tests_add_the_dev_extra_and_leave_the_quickstart_offline(machine: Machine) -> None:
    machine.stub("uname", "echo Linux")
    machine.stub_python()
    machine.run(str(machine.checkout / "scripts/run_tests.sh"), "-k", "two words")
    machine.run(str(machine.checkout / "scripts/run_quickstart.sh"))
    installs = [call for call in machine.calls() if "pip install" in call]
    assert [call.split(" -e ")[1] for call in installs] == [".[cpu,dev]"]
    assert any(call.startswith("-m pytest") and call.endswith("-k two words") for call in machine.calls())


def test_a_mac_is_kept_awake_and_needs_no_extra(machine: Machine) -> None:
    machine.stub("uname", "echo Darwin")
    machine.stub("caffeinate", 'echo "awake: $*"')
    machine.stub_python()
    result = machine.run(str(machine.checkout / "scripts/run_quickstart.sh"))
    assert "awake: -i .venv/bin/python -m core.training" in result.stdout
    assert any(call.endswith("-e .") for call in machine.calls())


def test_an_intel_python_on_a_mac_is_refused(machine: Machine) -> None:
    machine.stub("uname", "echo Darwin")
    machine.stub_python()
    machine.stub("python3", (machine.path / "python3").read_text().replace("arm64", "x86_64"))
    result = machine.run(str(machine.checkout / "scripts/run_quickstart.sh"))
    assert result.returncode == 2
    assert "Apple silicon" in result.stderr


def test_a_failed_installation_is_tried_again(machine: Machine) -> None:
    machine.stub("uname", "echo Linux")
    machine.stub_python(pip="echo no network >&2; exit 1")
    quickstart = str(machine.checkout / "scripts/run_quickstart.sh")
    result = machine.run(quickstart)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("error: the installation failed")
    machine.stub_python()
    shutil.copy(machine.path / "python3", machine.checkout / ".venv/bin/python")
    assert "Installing" in machine.run(quickstart).stdout


def test_a_new_lock_file_installs_again(machine: Machine) -> None:
    machine.stub("uname", "echo Linux")
    machine.stub_python()
    quickstart = str(machine.checkout / "scripts/run_quickstart.sh")
    machine.run(quickstart)
    (machine.checkout / "requirements-lock.txt").write_text("mlx==0.32.5\n")
    assert "Installing" in machine.run(quickstart).stdout
