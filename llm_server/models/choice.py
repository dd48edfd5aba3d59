"""Which files a request means: the model it names, or the default when it names none, and those of
its settings."""

from __future__ import annotations

import contextlib

from llm_server.errors import InvalidRequest, ModelLoadFailed, ModelLoading, ModelNotFound
from llm_server.looks import HUNG_S, PATIENCE_S, ask, in_thread
from llm_server.models.lease import Overrides
from llm_server.models.loader import Loader
from llm_server.models.plan import Planner
from llm_server.models.registry import ModelFile
from llm_server.models.residents import Residents


class Choice:
    """Knows the default model. Looks at the models folder when what it knows does not do."""

    def __init__(
        self, planner: Planner, residents: Residents, loader: Loader, first_model: str | None
    ) -> None:
        self.default: ModelFile | None = None
        """The model that requests get which name none, once there is one."""
        self._planner = planner
        self._registry = planner.registry
        self._residents = residents
        self._loader = loader
        self._first_model = first_model

    async def of(self, name: str | None) -> ModelFile:
        """The file that `name` means; one that is gone, too, while its model is loaded.

        What is loaded of it has just been looked at. Raises:
            ModelNotFound: there is none.
            ModelLoading: no name was given, and the folder is empty.
        """
        if name is None:
            return await self._unnamed()
        for resident in self._residents:
            if not self._registry.means(name, resident.model):
                continue
            await resident.worker.on_disk.look()
            # Short of its whole name, another file may have come that is meant now.
            if not resident.worker.on_disk.outdated and (
                name == resident.model.name or await self._registry.current.again()
            ):
                return resident.model
        await self._registry.scanned.again(PATIENCE_S if self._registry.knows(name) else HUNG_S)
        try:
            return await self._seen(self._registry.find(name))
        except ModelNotFound:
            for resident in self._residents:
                if self._registry.means(name, resident.model):
                    return resident.model
            raise

    async def reach(self, file: ModelFile) -> None:
        """See that `file`, unless it is loaded, can be looked at: nobody is to wait behind who
        wants a model whose disk hangs.

        Raises DiskTimeout.
        """
        resident = self._residents.get(file)
        if resident is not None and not resident.worker.on_disk.outdated:
            return

        def look() -> None:
            with contextlib.suppress(OSError):
                file.path.stat()
            with contextlib.suppress(ModelLoadFailed):  # The load says so.
                self._registry.facts(file)

        await ask(file.path, look)

    async def named(self, overrides: Overrides) -> Overrides:
        """The overrides with the names of files in full.

        Raises InvalidRequest for a file that is not there.
        """
        try:
            return self._planner.named(overrides)
        except InvalidRequest:
            await self._registry.scanned.again(HUNG_S)
            return self._planner.named(overrides)

    async def to_unload(self, name: str) -> ModelFile:
        """As `of`, and the stand-in also when it serves nobody any more.

        Raises ModelNotFound.
        """
        try:
            return await self.of(name)
        except ModelNotFound:
            for resident in self._residents:
                if resident.model.name in (name, f"{name}.gguf"):
                    return resident.model
            raise

    async def as_it_is(self, model: ModelFile) -> ModelFile:
        """The file that has the model's name now; the one given if there is none."""
        await self._registry.scanned.again()
        return self._registry.at(model.name) or model

    async def _unnamed(self) -> ModelFile:
        """The default model; the first one while there is none, or when its file is gone."""
        default = self.default
        if default is not None and self._registry.is_stand_in(default):
            default = None
        if default is not None and (resident := self._residents.get(default)) is not None:
            await resident.worker.on_disk.look()
            if not resident.worker.on_disk.outdated:
                return default
        if self._loader.loading is not None and self._loader.loads_text:
            return self._loader.loading
        await self._registry.scanned.again(PATIENCE_S if self._registry.models() else HUNG_S)
        if default is not None and (same := self._registry.at(default.name)) is not None:
            return same
        if self._first_model is not None:
            return await self._seen(self._registry.find(self._first_model))
        if (first := await in_thread(self._registry.first)) is not None:
            return await self._seen(first)
        raise ModelLoading("No model is loaded, and the models folder is empty.")

    async def _seen(self, file: ModelFile) -> ModelFile:
        """The same. What is loaded of it is looked at."""
        if (resident := self._residents.get(file)) is not None:
            await resident.worker.on_disk.look()
        return file
