"""A `muster up` of a test or benchmark: fresh folders, a free port, ended with the block. Standard library only."""
import os, shutil, signal, subprocess, tempfile, time


class Server:
    def __init__(self, muster, flags=(), keep=False):
        self.muster = os.path.abspath(muster)
        self.flags, self.keep = list(flags), keep
        self.dir = tempfile.mkdtemp(prefix="muster-test-")
        self.data_dir = os.path.join(self.dir, "data")
        self.kubeconfig = os.path.join(self.dir, "kubeconfig")
        self.log = os.path.join(self.dir, "log")
        self.process = None

    def start(self):
        """Returns the seconds until it was ready."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("MUSTER_", "KUBECONFIG"))}
        environment["MUSTER_HOME"] = self.dir
        started = time.monotonic()
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [self.muster, "up", "--data-dir", self.data_dir, "--listen", "127.0.0.1:0", "--kubeconfig",
                 self.kubeconfig, *self.flags],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, env=environment, text=True)
        line = self.process.stdout.readline()
        seconds = time.monotonic() - started
        if "ready" not in line:
            self.process.wait(10)
            with open(self.log, errors="replace") as log:
                raise RuntimeError(f"muster up ended with {self.process.returncode}: {log.read()[-4000:]}")
        return seconds

    def stop(self, how=signal.SIGTERM):
        if self.process and self.process.poll() is None:
            self.process.send_signal(how)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.process:
            self.process.stdout.close()

    def rss_bytes(self):
        with open(f"/proc/{self.process.pid}/status") as status:
            for line in status:
                if line.startswith("VmRSS:"):
                    return int(line.split()[1]) * 1024
        raise RuntimeError("no VmRSS")

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stop()
        if not self.keep:
            shutil.rmtree(self.dir, ignore_errors=True)
