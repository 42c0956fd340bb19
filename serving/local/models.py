"""The models that are served, the labels of their versions, and the file that says so."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from serving.errors import ConfigError
from serving.local.config import ModelConfig, read_models
from serving.local.model import Model
from serving.local.status import RequestError
from serving.local.versions import Loading, Versions, not_found

__all__ = ["Models"]

log = logging.getLogger(__name__)


class Models:
    """All models by name; threads may share it."""

    def __init__(self, loading: Loading, *, labels_for_unavailable: bool = False) -> None:
        """Sets up; nothing is served until `apply`.

        Args:
            loading: how versions are looked for and loaded.
            labels_for_unavailable: whether a label that is new may name a version that isn't available.
        """
        self._loading = loading
        self._labels_for_unavailable = labels_for_unavailable
        self._models: dict[str, Versions] = {}
        self._labels: Mapping[str, Mapping[str, int]] = {}
        self._applied: Sequence[ModelConfig] | None = None
        self._stopped = threading.Event()

    def __contains__(self, name: str) -> bool:
        """Whether a model of this name is or was served."""
        return name in self._models

    def apply(self, configs: Sequence[ModelConfig] | None) -> None:
        """Serves these models and no others.

        Args:
            configs: None for a file that says nothing, which is taken as long as none said more.

        Raises:
            ConfigError: a label is refused; all stays as it was.
        """
        if configs is None:
            if self._applied is not None:
                raise ConfigError(
                    "Cannot transition to requested config. It is only legal to transition from one "
                    "ModelConfigList to another."
                )
            return
        for config in configs:
            for label, version in config.labels.items():
                self._check_label(config.name, label, version)
        self._labels = {config.name: config.labels for config in configs}
        if self._applied is not None and configs != self._applied:
            log.info("from now on: %s", "; ".join(map(_describe, configs)) or "no model")
        self._applied = configs
        removed = self._models.keys() - {config.name for config in configs}
        for name in removed:
            self._models[name].update(ModelConfig(name, Path(), newest=None, only=frozenset()))
        for config in configs:
            # Labels don't change what is loaded.
            plain = dataclasses.replace(config, labels={})
            if config.name in self._models:
                self._models[config.name].update(plain)
            else:
                self._models[config.name] = Versions(plain, self._loading)
                self._models[config.name].start()

    def wait(self) -> None:
        """Waits until all versions that are wanted have been loaded once, so that labels can be called.

        Raises:
            RequestError: no version of a model can be loaded.
        """
        for versions in self._models.values():
            versions.first.result()

    def follow(self, file: Path, seconds: float) -> None:
        """Applies a `--model_config_file` again and again, from another thread."""
        threading.Thread(target=self._follow, args=(file, seconds), name=f"{file}", daemon=True).start()

    def stop(self) -> None:
        """Stops to look for changes; what is loaded stays loaded."""
        self._stopped.set()
        for versions in list(self._models.values()):
            versions.stop()

    @contextlib.contextmanager
    def lease(
        self, name: str, version: int | None = None, label: str | None = None
    ) -> Iterator[tuple[int, Model]]:
        """Lends a version, which won't be unloaded meanwhile.

        Args:
            name: of the model.
            version: its number; without it and a label, the latest that is available.
            label: that names the version.

        Raises:
            RequestError: there is no such label, or no such version is available.
        """
        if label is not None:
            version = self._labels.get(name, {}).get(label)
            if version is None:
                raise RequestError(f"Unrecognized servable version label: {label}")
        if name not in self._models:
            raise not_found(name, version)
        with self._models[name].lease(version) as leased:
            yield leased

    def status(self, name: str, version: int | None = None) -> list[dict[str, object]]:
        """Tells the state of one version or of all, newest first.

        Raises:
            RequestError: it isn't there.
        """
        if name not in self._models:
            what = "any versions" if version is None else f"version {version}"
            raise RequestError(f"Could not find {what} of model {name}", "NOT_FOUND")
        return self._models[name].status(version)

    def _check_label(self, name: str, label: str, version: int) -> None:
        before = self._labels.get(name, {}).get(label, version)
        is_free = self._labels_for_unavailable and before == version
        if not is_free and not (name in self._models and self._models[name].is_available(version)):
            raise ConfigError(
                f"Request to assign label to version {version} of model {name}, "
                "which is not currently available for inference"
            )

    def _follow(self, file: Path, seconds: float) -> None:
        refused = ""
        while not self._stopped.wait(seconds):
            try:
                self.apply(read_models(file))
                refused = ""
            except ConfigError as error:
                if str(error) != refused:  # once, not at every look
                    log.error("%s is refused, what was served before goes on: %s", file, error)
                refused = str(error)


def _describe(config: ModelConfig) -> str:
    labels = ", ".join(f"{label}={version}" for label, version in sorted(config.labels.items()))
    return f"{config.name} from {config.base_path}{f' ({labels})' if labels else ''}"
