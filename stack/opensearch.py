"""OpenSearch with the k-NN plugin (Lucene engine) as one node."""

from __future__ import annotations

import json
from collections.abc import Mapping

from sightlog.atomic_write import write_atomically
from stack import ports
from stack.artifacts import Artifact, ArtifactCache, pinned
from stack.component import Launch, Progress, Usage
from stack.java import JavaRuntime
from stack.jvm import LOG4J2_CONSOLE, heap_options, jvm_environment
from stack.opensearch_home import ROOT, VERSION, assemble
from stack.privileges import hand_over, unprivileged
from stack.settings import HOST, StackSettings

_CONFIG = """\
cluster.name: sightlog
node.name: sightlog-1
path.data: {data}
path.logs: {logs}
path.repo: ["{repo}"]
discovery.type: single-node
network.host: {host}
http.port: {http}
transport.port: {transport}
# A laptop's disk is often fuller than the watermarks allow; the start checks for free space instead.
cluster.routing.allocation.disk.threshold_enabled: false
# A misspelt index name must be an error, not a new index with a guessed mapping.
action.auto_create_index: false
# Who reads pages and stops before the last holds one on each shard until its cursor expires; the default is 300.
search.max_open_pit_context: 5000
# For native engines, which are not used. The default is half of the machine's memory, and in a control group that the
# sandbox may not read (a container that sees the host's groups) that is unknown: the node would not start.
knn.memory.circuit_breaker.limit: 64mb
"""

_JVM_OPTIONS = (
    "-Xshare:auto",
    "-XX:+UseG1GC",
    "-XX:G1ReservePercent=25",
    "-XX:InitiatingHeapOccupancyPercent=30",
    "-Dopensearch.networkaddress.cache.ttl=60",
    "-Dfile.encoding=UTF-8",
    "-Djava.locale.providers=CLDR,SPI",
    "-Djna.nosys=true",
    "-Dio.netty.noUnsafe=true",
    "-Dio.netty.noKeySetOptimization=true",
    "-Dio.netty.recycler.maxCapacityPerThread=0",
    "-Dlog4j.shutdownHookEnabled=false",
    "-Dlog4j2.disable.jmx=true",
    "--enable-native-access=ALL-UNNAMED",
    "-Dorg.apache.lucene.store.MMapDirectory.sharedArenaMaxPermits=1",
    "-Dopensearch.distribution.type=tar",
    "-Dopensearch.bundled_jdk=false",
)


class OpenSearch:
    """The node as a supervised process."""

    name = "opensearch"

    def __init__(self, settings: StackSettings, cache: ArtifactCache, java: JavaRuntime) -> None:
        self._settings, self._cache, self._java = settings, cache, java
        self._folder = settings.data_dir / "opensearch"
        self._port = settings.port(ports.OPENSEARCH_HTTP)
        # The module does not load on a runtime without the charsets it asks for.
        self._without = () if java.vector_module else ("analysis-common",)
        self._home = settings.cache_dir / f"opensearch-{VERSION}{'-small' if self._without else ''}"
        self.ports = {"http": self._port, "transport": settings.port(ports.OPENSEARCH_TRANSPORT)}
        self.usage = Usage(memory_mb=settings.opensearch_heap_mb + 300, data_mb=500)
        self.ready_timeout_s = settings.opensearch_ready_timeout_s

    def artifacts(self) -> Mapping[str, tuple[Artifact, ...]]:
        """Server, modules, sandbox agent and plugin."""
        return {folder: files for folder, files in pinned().items() if folder.startswith(ROOT)}

    def prepare(self, progress: Progress) -> None:
        """Assemble the home in the cache; write the configuration; give the folders to the node's user."""
        assemble(self._cache, self.artifacts(), self._home, self._without)
        for folder in ("config", "data", "logs", "tmp", "repo"):
            (self._folder / folder).mkdir(parents=True, exist_ok=True)
        text = _CONFIG.format(
            data=self._folder / "data",
            logs=self._folder / "logs",
            repo=self._folder / "repo",
            host=HOST,
            http=self._port,
            transport=self.ports["transport"],
        )
        config = self._folder / "config"
        write_atomically(config / "opensearch.yml", text)
        write_atomically(config / "jvm.options", "")
        pattern = "[%d{ISO8601}][%-5p][%-25c{1.}]%marker %m%n"
        write_atomically(config / "log4j2.properties", LOG4J2_CONSOLE.format(pattern=pattern))
        identity = unprivileged((self._folder / "data", self._home / "lib"), self._java.java)
        if identity is not None:
            hand_over(self._folder, identity)

    def launch(self) -> Launch:
        """The production main class, sandbox agent included."""
        heap, home, temporary = self._settings.opensearch_heap_mb, self._home, self._folder / "tmp"
        agent = next((home / "agent").glob("opensearch-agent-[0-9]*.jar"))
        command = (
            str(self._java.java),
            *heap_options(heap, heap),
            *_JVM_OPTIONS,
            f"-Djava.io.tmpdir={temporary}",
            f"-Djna.tmpdir={temporary}",
            *(("--add-modules=jdk.incubator.vector",) if self._java.vector_module else ()),
            f"-javaagent:{agent}",
            f"-Dopensearch.path.home={home}",
            f"-Dopensearch.path.conf={self._folder / 'config'}",
            "-cp",
            f"{home}/lib/*",
            "org.opensearch.bootstrap.OpenSearch",
        )
        identity = unprivileged((self._folder / "data", home / "lib"), self._java.java)
        return Launch(command, jvm_environment(self._folder), self._folder, identity)

    def unready(self) -> str | None:
        """Ready when the cluster is yellow or green: all primaries serve."""
        status, body = ports.http_get(self._port, "/_cluster/health?wait_for_status=yellow&timeout=1s")
        if status == 0:
            return "no listener yet"
        try:
            health = json.loads(body).get("status")
        except ValueError:
            return f"HTTP {status}"
        return None if status == 200 and health in ("yellow", "green") else f"cluster is {health or status}"

    def damage(self, pid: int) -> str | None:
        """A node that lives serves."""
        return None

    def clean(self) -> None:
        """The kernel frees the node's lock."""
