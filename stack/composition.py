"""Which components a stack has, built from its settings."""

from __future__ import annotations

from dataclasses import dataclass

from stack.artifacts import ArtifactCache, jgo_resolver
from stack.component import Component
from stack.java import JavaRuntime, select_java
from stack.kafka import Kafka
from stack.opensearch import OpenSearch
from stack.settings import StackSettings
from stack.triton import Triton
from stack.workers import topics_for, workers_of


@dataclass(frozen=True)
class Composition:
    """Services start together; workers follow once those are ready."""

    settings: StackSettings
    cache: ArtifactCache
    java: JavaRuntime | None
    services: tuple[Component, ...]
    workers: tuple[Component, ...]

    @property
    def all(self) -> tuple[Component, ...]:
        """Every component."""
        return (*self.services, *self.workers)


def compose(settings: StackSettings) -> Composition:
    """The components of a stack. Raises PreflightError when there is no usable Java."""
    cache = ArtifactCache(settings.cache_dir, jgo_resolver(settings.download_timeout_s))
    services: list[Component] = []
    java = None
    if {"kafka", "opensearch"} & set(settings.components):
        java = select_java(settings.java_home)
        if "kafka" in settings.components:
            services.append(Kafka(settings, cache, java, topics_for(settings)))
        if "opensearch" in settings.components:
            services.append(OpenSearch(settings, cache, java))
    if "triton" in settings.components:
        services.append(Triton(settings))
    return Composition(settings, cache, java, tuple(services), workers_of(settings))
