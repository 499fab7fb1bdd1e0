# backupd beside a web container: docker-compose.override.yml shows how it is run.
#
#   docker build --tag backupd .
#   docker buildx build --platform linux/amd64,linux/arm64 --tag REGISTRY/backupd --push .
#
# Both platforms need the same file: every dependency has wheels for each. To install packages from a mirror, use
# `--build-arg PIP_INDEX_URL=...`; the URL does not get into the image.

FROM python:3.13-slim AS packages

WORKDIR /source
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_TRUSTED_HOST
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
# Without pip: a new image replaces what is installed here; a running container never changes it.
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

# Remove what backupd never uses: the packages' own tests, files for compiling against them, other AWS services, and
# pygments, which rich needs only to colour source code. botocore keeps S3 and the services that issue credentials:
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
# The base image has no bytecode of Python's library, and a read-only container cannot write it: without this step, each
# health check would spend half a second compiling.
RUN rm -r /usr/local/lib/python3.13/site-packages/* /usr/local/lib/python3.13/ensurepip /usr/local/bin/pip* \
    && python -m compileall -q -j 0 --invalidation-mode unchecked-hash \
        -x '/(idlelib|lib2to3|pydoc_data|test|tkinter|turtledemo|unittest|_pyrepl)/' /usr/local/lib/python3.13
# Every directory that backupd writes to may be a volume. All users may write to it, because backupd runs as the owner of
# the database, which is only known when it starts. A new named volume takes over this mode; the sticky bit protects each
# user's files from the other users.
RUN mkdir --mode=1777 /var/lib/backupd /backups
COPY --from=packages /opt/backupd /opt/backupd
# Any user may write here, so a restore to a file name without a directory works.
WORKDIR /var/lib/backupd

ENV PATH=/opt/backupd/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    MALLOC_ARENA_MAX=2 \
    BACKUPD_RUN_AS_OWNER=true \
    BACKUPD_STATE_DIR=/var/lib/backupd

STOPSIGNAL SIGTERM
# The daemon leaves the file `healthy` every 20 seconds while nothing is wrong. Looking at it costs a thirtieth of what
# `backupd status --check` costs, which says what is wrong when there is no such file.
HEALTHCHECK --interval=30s --timeout=20s --start-period=60s --retries=3 CMD ["/bin/sh", "-c", \
    "find \"$BACKUPD_STATE_DIR\" -maxdepth 2 -name healthy -newermt '2 minutes ago' ! -newermt '1 minute' 2>/dev/null \
    | grep -q . && echo healthy || exec backupd status --check"]
ENTRYPOINT ["backupd"]
CMD ["run"]
