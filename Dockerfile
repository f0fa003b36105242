# The operator, with `podlink` and `kubectl podlink` for people who look into its pod.
#
#   docker build --build-arg REVISION="$(git rev-parse HEAD)" --tag podlink .
#
# Works on any Debian with Python 3.11 or newer and the module venv. An index or a proxy of your own for pip goes in as a
# secret, and so into no layer: --secret id=pip.conf,src=$HOME/.config/pip/pip.conf. HTTP_PROXY, HTTPS_PROXY and NO_PROXY
# are build arguments that need no declaration. The base is a tag, which moves with its security updates; name a digest
# where a build has to be the same again.
ARG BASE=python:3.13-slim

FROM ${BASE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1

# pip stays in a virtual environment of its own; what it installs goes into one without it. Both have the interpreter of
# the base by a symbolic link, as the final stage does.
RUN python3 -m venv /opt/pip && python3 -m venv --without-pip /opt/podlink
WORKDIR /src

# Before the sources, so that a change of those downloads nothing anew.
COPY requirements.lock requirements-build.lock ./
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    /opt/pip/bin/pip --python /opt/podlink/bin/python install --quiet --require-hashes --no-deps --only-binary :all: \
        --no-compile --requirement requirements.lock \
    && /opt/pip/bin/pip install --quiet --require-hashes --no-deps --only-binary :all: \
        --requirement requirements-build.lock

COPY pyproject.toml README.md ./
COPY lua lua
COPY operator operator
RUN /opt/pip/bin/pip wheel --quiet --no-index --no-deps --no-build-isolation --wheel-dir dist . \
    && /opt/pip/bin/pip --python /opt/podlink/bin/python install --quiet --no-index --no-deps --no-compile dist/*.whl

# The bytecode does not depend on the time of the build, and nobody checks it against sources that cannot change.
RUN rm -r /opt/podlink/bin/[Aa]ctivate* \
    && python3 -m compileall -q --invalidation-mode unchecked-hash /opt/podlink/lib


FROM ${BASE}
ARG VERSION=0.2.0
ARG REVISION=""
ARG SOURCE=""
LABEL org.opencontainers.image.title="PodLink" \
      org.opencontainers.image.description="Operator that keeps users linked to the pods of stateful services, in Redis" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}"

# Nothing can be installed in a pod: the base's pip goes, and the copies that Python has for new virtual environments.
RUN apt-get purge --quiet --quiet --yes '~i~n^python3-pip-whl$' '~i~n^python3-setuptools-whl$' \
    && apt-get clean \
    && rm -rf /usr/local/bin/pip* /usr/local/lib/python3*/ensurepip /usr/local/lib/python3*/site-packages/*
COPY --from=build /opt/podlink /opt/podlink
ENV PATH=/opt/podlink/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONUNBUFFERED=1
# The official Python images come without bytecode of the standard library. This writes what the operator imports of it,
# once, because on a read-only root file system each start would compile it again.
RUN env -u PYTHONDONTWRITEBYTECODE podlink --version
ENV PYTHONDONTWRITEBYTECODE=1

# Numeric, so that Kubernetes can tell that it is not root.
USER 65532:65532
EXPOSE 8080
STOPSIGNAL SIGTERM
ENTRYPOINT ["podlink"]
CMD ["run"]
