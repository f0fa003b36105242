"""How to reach the cluster: the user's kubeconfig, or the service account of the pod.

One configuration serves both clients, the one of `kubernetes.aio` and Kopf's. It is read anew each time it is asked
for, because tokens of service accounts rotate and kubeconfig plugins hand out short-lived ones.
"""

import os
from pathlib import Path

from kubernetes.aio import config
from kubernetes.aio.client import Configuration

from podlink.domain.errors import PodLinkError

_KUBECONFIG = Path.home() / ".kube" / "config"
_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


class ClusterAccessError(PodLinkError):
    """No usable way to the cluster; the text says what was tried and what to set."""


async def load_configuration() -> Configuration:
    """Return the configuration as it is now.

    The order is kubectl's: `$KUBECONFIG`, `~/.kube/config`, then the service account.

    Raises:
        ClusterAccessError: none of them is there, or the one that is cannot be used.
    """
    configuration = Configuration()
    location = _kubeconfig()
    if location is None:
        try:
            config.load_incluster_config(client_configuration=configuration)
        except (config.ConfigException, OSError) as error:
            raise ClusterAccessError(f"the pod's service account cannot be used: {error}") from error
        return configuration
    try:
        await config.load_kube_config(config_file=location, client_configuration=configuration, persist_config=False)
    except Exception as error:
        raise ClusterAccessError(f"kubeconfig {location} cannot be used: {_why(error)}; check KUBECONFIG") from error
    return configuration


def own_namespace() -> str | None:
    """The namespace of the pod that this is; None elsewhere."""
    file = _SERVICE_ACCOUNT.with_name("namespace")
    return file.read_text().strip() if file.exists() else None


def _why(error: Exception) -> str:
    """Say what is wrong with a kubeconfig; the loader takes its structure for granted and trips over the rest."""
    if isinstance(error, (AttributeError, KeyError, TypeError)):
        return "it is empty or has not the structure of one"
    return " ".join(str(error).split())


def _kubeconfig() -> str | None:
    """Return the kubeconfig to use; None inside a pod."""
    named = os.environ.get("KUBECONFIG")
    if named and not any(Path(place).exists() for place in named.split(os.pathsep)):
        raise ClusterAccessError(f"KUBECONFIG={named} does not exist; set it to a kubeconfig file")
    if named or _KUBECONFIG.exists():
        return named or str(_KUBECONFIG)
    if _SERVICE_ACCOUNT.exists():
        return None
    raise ClusterAccessError(
        f"no cluster: {_KUBECONFIG} does not exist and this is no pod with a service account; "
        "set KUBECONFIG to a kubeconfig file"
    )
