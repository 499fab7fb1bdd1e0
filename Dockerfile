# backupd beside a web container: docker-compose.override.yml shows how it is run.
#
#   docker build --tag backupd .
#   docker buildx build --platform linux/amd64,linux/arm64 --tag REGISTRY/backupd --push .
#
# Nothing here depends on the processor: every dependency has wheels for both. Where packages come from a mirror,
# `--build-arg PIP_INDEX_URL=...` names it; it stays out of the image.

FROM python:3.13-slim AS packages

WORKDIR /source
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_TRUSTED_HOST
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
# Without pip: what is installed here is not changed in a running container, but replaced with it.
RUN python -m venv --without-pip /opt/backupd

# The dependencies first, from their own layer: they change less often than backupd does.
COPY pyproject.toml constraints.txt ./
RUN python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
        >requirements.txt \
    && pip --python /opt/backupd/bin/python install --quiet --no-compile --only-binary :all: \
        --constraint constraints.txt --requirement requirements.txt

COPY README.md LICENSE ./
COPY backupd backupd
RUN pip --python /opt/backupd/bin/python install --quiet --no-compile --no-deps .

# What the packages carry for their own tests, for compiling against them, for services that backupd never calls, and
# for colouring source code, which rich would need pygments for. botocore keeps S3, and what its credentials come from:
# roles, web identities, single sign-on and `aws login`.
WORKDIR /opt/backupd/lib/python3.13/site-packages
RUN find botocore/data boto3/data -mindepth 1 -maxdepth 1 -type d \
        ! -name s3 ! -name sts ! -name sso ! -name sso-oidc ! -name signin -exec rm -r {} + \
    && find . -type d -name tests -prune -exec rm -r {} + \
    && rm -rf boto3/examples numpy/f2py numpy/_core/include numpy/_core/lib numpy/_core/_simd.*.so numpy/random/lib \
        apsw/sqlite_extra_binaries zstandard/_cffi.*.so pygments \
    && find . \( -name '*.pyi' -o -name '*.pxd' -o -name '*.pyx' -o -name '*_tests.*.so' \) -delete \
    && /opt/backupd/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash .


FROM python:3.13-slim

LABEL org.opencontainers.image.title="backupd" \
      org.opencontainers.image.description="SQLite backups that you install once, forget for years, and are saved by" \
      org.opencontainers.image.licenses="MIT"
# Python comes without bytecode of its own library, and could not write it into a file system that is read-only: each
# health check would compile half a second's worth of it.
RUN rm -r /usr/local/lib/python3.13/site-packages/* /usr/local/lib/python3.13/ensurepip /usr/local/bin/pip* \
    && python -m compileall -q -j 0 --invalidation-mode unchecked-hash \
        -x '/(idlelib|lib2to3|pydoc_data|test|tkinter|turtledemo|unittest|_pyrepl)/' /usr/local/lib/python3.13
# Every directory that backupd writes to may be a volume, and belongs to nobody in particular: whose database it is, and
# so as whom backupd runs, is found out when it starts. A new named volume takes this mode over, and the sticky bit keeps
# users from each other's files.
RUN mkdir --mode=1777 /var/lib/backupd /backups
COPY --from=packages /opt/backupd /opt/backupd
# Where a file that is named without a directory can be written, whoever backupd is.
WORKDIR /var/lib/backupd

ENV PATH=/opt/backupd/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    MALLOC_ARENA_MAX=2 \
    BACKUPD_RUN_AS_OWNER=true \
    BACKUPD_STATE_DIR=/var/lib/backupd

STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=20s --start-period=60s --retries=3 CMD ["backupd", "status", "--check"]
ENTRYPOINT ["backupd"]
CMD ["run"]
