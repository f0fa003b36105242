"""A real Kubernetes control plane as local processes, with kwok for the kubelet.

The API server, the controllers and the scheduler are the ones a cluster runs; only the containers are missing: kwok
gives each pod the status a kubelet would (stages.yaml says how tests steer it). `python -m sandbox.control_plane`
starts one to try things by hand.
"""

from __future__ import annotations

import base64
import http.client
import json
import secrets
import shutil
import ssl
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from sandbox import binaries
from sandbox.certificates import write_certificates
from sandbox.cluster import Cluster
from sandbox.processes import ended_by_signal, free_port, spawn, until
from sandbox.progress import console

if TYPE_CHECKING:
    from sandbox.processes import Process

STAGES = Path(__file__).with_name("stages.yaml")
AUDIT_POLICY = Path(__file__).with_name("audit-policy.yaml")
NODE_NAME = "sandbox-node"
START_TIMEOUT_SECONDS = 120
START_ATTEMPTS = 3


class ControlPlaneError(RuntimeError):
    """A component did not start; the text ends with the end of its log."""


class ControlPlane(Cluster):
    """One control plane, with PodLink's CRD and finalizer policy and a node that takes 2000 pods.

    RBAC is on; the kubeconfig is the administrator's.

    Attributes:
        directory: etcd's data, certificates, the kubeconfig and a log for each component. Emptied by `start`, left as
            it is by `stop`.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(directory / "kubeconfig", cache_directory=directory / "kubectl-cache")
        self.directory = directory
        self._components: dict[str, Process] = {}
        self._binaries = Path()
        self._api_port = 0
        self._etcd_ports: list[int] = []
        self._kwok_starts = 0

    @property
    def control_plane(self) -> ControlPlane:
        """Itself."""
        return self

    @property
    def audit_log(self) -> Path:
        """What service accounts asked of the API server: a JSON object a line, complete when the answer was sent."""
        return self.directory / "audit.log"

    @property
    def api_server_url(self) -> str:
        """Where the API server listens, the same after a restart."""
        return f"https://127.0.0.1:{self._api_port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start everything, and return when PodLinks can be created and a pod would get Ready.

        Raises:
            binaries.BinariesError: there is nothing to start.
            ControlPlaneError: a component ended, or was not ready in time.
        """
        self._binaries = binaries.ensure()
        try:
            self._start_etcd_and_api_server()
            # First, because the API server takes its time to see it everywhere.
            self.install_podlink()
            self._start_clients()
            self._create_node()
            self.await_podlinks()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End all components. Their data is of no more use, so they are killed; may be repeated."""
        for process in reversed(self._components.values()):
            process.kill()
        self._components.clear()

    def stop_api_server(self) -> None:
        """Take the API server down, all at once as in a crash; the rest goes on without it."""
        # After a SIGTERM it would go on for a minute with the watches that are open.
        self._components["kube-apiserver"].kill()

    def start_api_server(self) -> None:
        """Bring the API server back, on the same port and with the same data, and wait until it is ready."""
        self._start_component("kube-apiserver")
        self._await_api_server()
        # They would come back by themselves, but after an outage of a minute they wait another minute before they try.
        self._start_clients()
        self.await_podlinks()

    def restart_api_server(self) -> None:
        """`stop_api_server` and `start_api_server`."""
        self.stop_api_server()
        self.start_api_server()

    def _start_etcd_and_api_server(self) -> None:
        for attempt in range(1, START_ATTEMPTS + 1):
            self._prepare_directory()
            self._start_component("etcd")
            self._start_component("kube-apiserver")
            try:
                self._await_api_server()
            except ControlPlaneError as error:
                self.stop()
                # Between free_port and the bind, somebody else may have taken the port.
                if attempt == START_ATTEMPTS or "address already in use" not in str(error):
                    raise
            else:
                return

    def _start_clients(self) -> None:
        for component in ("kube-controller-manager", "kube-scheduler", "kwok"):
            self._start_component(component)

    def _prepare_directory(self) -> None:
        if self.directory.exists():
            shutil.rmtree(self.directory)
        self.directory.mkdir(parents=True, mode=0o700)
        ports: set[int] = set()
        while len(ports) < 3:  # the API server's, and two for etcd
            ports.add(free_port())
        self._api_port, *self._etcd_ports = ports
        write_certificates(self.directory)
        token = secrets.token_hex(16)
        # One administrator for all: what RBAC grants to the components is not what is tested here.
        tokens = self.directory / "tokens.csv"
        tokens.touch(mode=0o600)
        tokens.write_text(f'{token},sandbox-admin,sandbox-admin,"system:masters"\n')
        self._write_kubeconfig(token)

    def _write_kubeconfig(self, token: str) -> None:
        authority = base64.b64encode((self.directory / "ca.crt").read_bytes()).decode()
        server = {"server": self.api_server_url, "certificate-authority-data": authority}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "sandbox", "cluster": server}],
            "users": [{"name": "sandbox-admin", "user": {"token": token}}],
            "contexts": [
                {"name": "podlink-sandbox", "context": {"cluster": "sandbox", "user": "sandbox-admin"}},
            ],
            "current-context": "podlink-sandbox",
        }
        self.kubeconfig.touch(mode=0o600)
        self.kubeconfig.write_text(json.dumps(content, indent=2) + "\n")

    def _start_component(self, name: str) -> None:
        arguments = {
            "etcd": self._etcd_arguments,
            "kube-apiserver": self._api_server_arguments,
            "kube-controller-manager": self._controller_manager_arguments,
            "kube-scheduler": self._scheduler_arguments,
            "kwok": self._kwok_arguments,
        }[name]()
        if name in self._components:
            self._components[name].kill()
        self._components[name] = spawn(
            [self._binaries / name, *arguments], log_path=self.directory / f"{name}.log", cwd=self.directory
        )

    def _etcd_arguments(self) -> list[str]:
        client_url, peer_url = (f"http://127.0.0.1:{port}" for port in self._etcd_ports)
        return [
            f"--data-dir={self.directory / 'etcd'}",
            f"--listen-client-urls={client_url}",
            f"--advertise-client-urls={client_url}",
            f"--listen-peer-urls={peer_url}",
            f"--initial-advertise-peer-urls={peer_url}",
            f"--initial-cluster=default={peer_url}",
            "--unsafe-no-fsync",
            "--log-level=warn",
        ]

    def _api_server_arguments(self) -> list[str]:
        issuer = "https://kubernetes.default.svc"
        return [
            f"--etcd-servers=http://127.0.0.1:{self._etcd_ports[0]}",
            "--bind-address=127.0.0.1",
            f"--secure-port={self._api_port}",
            # Nothing looks for the API server inside this cluster, and the machine may have no other address.
            "--advertise-address=127.0.0.1",
            "--endpoint-reconciler-type=none",
            f"--tls-cert-file={self.directory / 'api-server.crt'}",
            f"--tls-private-key-file={self.directory / 'api-server.key'}",
            f"--client-ca-file={self.directory / 'ca.crt'}",
            f"--token-auth-file={self.directory / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            "--service-cluster-ip-range=10.96.0.0/16",
            f"--service-account-issuer={issuer}",
            f"--api-audiences={issuer}",
            f"--service-account-key-file={self.directory / 'service-account.pub'}",
            f"--service-account-signing-key-file={self.directory / 'service-account.key'}",
            "--profiling=false",
            f"--audit-policy-file={AUDIT_POLICY}",
            f"--audit-log-path={self.audit_log}",
        ]

    def _controller_manager_arguments(self) -> list[str]:
        return [
            f"--kubeconfig={self.kubeconfig}",
            f"--service-account-private-key-file={self.directory / 'service-account.key'}",
            f"--root-ca-file={self.directory / 'ca.crt'}",
            # Else, after an API server outage of 50 s, the node counts as lost and all pods become NotReady.
            "--node-monitor-grace-period=1h",
            *self._fast_and_alone(),
        ]

    def _scheduler_arguments(self) -> list[str]:
        return [f"--kubeconfig={self.kubeconfig}", *self._fast_and_alone()]

    def _fast_and_alone(self) -> list[str]:
        # The default rates, 20 and 50 a second, are what a test of hundreds of pods would wait for.
        return ["--leader-elect=false", "--secure-port=0", "--kube-api-qps=2000", "--kube-api-burst=2000"]

    def _kwok_arguments(self) -> list[str]:
        self._kwok_starts += 1
        return [
            f"--kubeconfig={self.kubeconfig}",
            f"--config={STAGES}",
            "--manage-all-nodes=true",
            # No lease: it would make a new kwok wait until that of the last one runs out.
            "--node-lease-duration-seconds=0",
            # It does not know which addresses the last one gave to pods.
            f"--cidr=10.{128 + self._kwok_starts % 128}.0.0/16",
        ]

    def _await_api_server(self) -> None:
        context = ssl.create_default_context(cafile=self.directory / "ca.crt")

        def ready() -> bool:
            for name in ("etcd", "kube-apiserver"):
                self._check_alive(name)
            connection = http.client.HTTPSConnection("127.0.0.1", self._api_port, context=context, timeout=5)
            try:
                connection.request("GET", "/readyz")
                return connection.getresponse().status == http.HTTPStatus.OK
            finally:
                connection.close()

        try:
            until(ready, START_TIMEOUT_SECONDS, "the API server to be ready", retry_on=(OSError,))
        except TimeoutError as error:
            log = self._components["kube-apiserver"].log_tail()
            raise ControlPlaneError(f"{error}\n{log}") from error

    def _create_node(self) -> None:
        self.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE_NAME}})

        def ready() -> bool:
            self.check_alive()
            path = '{.status.conditions[?(@.type=="Ready")].status} {.spec.taints}'
            # The taint "not-ready", which the controllers take away, would keep pods from it.
            return self.kubectl("get", "node", NODE_NAME, "-o", f"jsonpath={path}").stdout.strip() == "True"

        try:
            until(ready, START_TIMEOUT_SECONDS, "the node to be Ready")
        except TimeoutError as error:
            logs = "\n".join(process.log_tail() for process in self._components.values())
            raise ControlPlaneError(f"{error}\n{logs}") from error

    def check_alive(self) -> None:
        """Raise ControlPlaneError, with the end of its log, when a component has ended."""
        for name in self._components:
            self._check_alive(name)

    def _check_alive(self, name: str) -> None:
        process = self._components[name]
        if not process.alive:
            raise ControlPlaneError(f"{name} ended with exit code {process.returncode}\n{process.log_tail()}")


def main() -> None:
    """Start one in the directory given (else a temporary one), and stay until Ctrl-C."""
    started = time.monotonic()
    with (
        ended_by_signal(),
        tempfile.TemporaryDirectory(prefix="podlink-control-plane-", ignore_cleanup_errors=True) as temporary,
        ControlPlane(Path(sys.argv[1] if len(sys.argv) > 1 else temporary).absolute()) as control_plane,
    ):
        took = time.monotonic() - started
        console.print(f"ready after {took:.1f} s, logs in {control_plane.directory}; Ctrl-C ends it")
        print(f"export KUBECONFIG={control_plane.kubeconfig}", flush=True)  # noqa: T201 - to paste
        threading.Event().wait()


if __name__ == "__main__":
    main()
