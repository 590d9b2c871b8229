"""Saving a trained model with its card, and pushing it to the Hub."""

import os
import shutil
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo
from peft import PeftModel
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress
from transformers.utils.hub import hf_api

from ..adapters.base_model import check_base
from ..adapters.peft_model import SegPeftModel
from ..adapters.presets import trainable_table
from ..hub import commit_operations, resume_operations, weight_files
from ..model_card import model_card, public_name, write_card


class PublishingMixin:
    """
    Model card, record of the base, and what is pushed.

    Of the trainer it needs what `Trainer` has, `_stage` and `_tag_names` for the card, and a call to
    [`~PublishingMixin.prepare_to_save`] in its constructor.
    """

    def prepare_to_save(self) -> None:
        """Call once the model is there and before anything trains: what its card and the record of its base need."""
        # A path that is a local folder now might not be one when the card is written.
        self._base_model = public_name(self.model.config._name_or_path)
        self.trainable_summary = trainable_table(self.model)
        if isinstance(self.model, PeftModel):
            SegPeftModel.adopt(self.model)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """
        As in `Trainer`, but never by a name of its own making.

        Args:
            token, private: as in `Trainer`.

        Raises:
            `ValueError`: `hub_model_id` is not set, or checkpoints would go up that DeepSpeed or FSDP has written.
        """
        if self.args.hub_model_id is None:
            raise ValueError(
                "Pushing needs hub_model_id: without it the repository would get the name of the output folder."
            )
        if self._pushes_checkpoints and (self.is_deepspeed_enabled or self.is_fsdp_enabled):
            raise ValueError(
                f"hub_strategy={self.args.hub_strategy.value!r} is not available with DeepSpeed or FSDP, whose "
                "checkpoints hold their configuration and the frozen weights: use 'every_save' or 'end'."
            )
        super().init_hf_repo(token=token, private=private)

    @property
    def _pushes_checkpoints(self) -> bool:
        return self.args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS)

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            write_card(output_dir or self.args.output_dir, self._card())

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        if isinstance(self.model, SegPeftModel):
            check_base(self.model, self.model.base_record, resume_from_checkpoint)
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def create_model_card(
        self,
        model_name: str | None = None,
        dataset_name: str | list[str] | None = None,
        tags: str | list[str] | None = None,
        metrics: dict | str | os.PathLike | None = None,
    ) -> None:
        """
        Write `README.md` into the output folder, see [`~model_card.model_card`].

        Args:
            model_name (`str`, *optional*): title; by default the repository's name, and never the output folder's.
            dataset_name (`str` or `list[str]`, *optional*): training data; named if it is a Hub id.
            tags (`str` or `list[str]`, *optional*): further tags.
            metrics (`dict`, `str` or `os.PathLike`, *optional*): an evaluation's `metrics.json` or its content.
        """
        if self.is_world_process_zero():
            write_card(self.args.output_dir, self._card(model_name, dataset_name, tags, metrics))

    def _card(self, model_name=None, dataset_name=None, tags=None, metrics=None):
        is_adapter = isinstance(self.model, PeftModel)
        repo_id = getattr(self, "hub_model_id", None) or self.args.hub_model_id
        # TRL gives the output folder's name where there is no repository.
        if model_name is None or model_name == Path(self.args.output_dir).name:
            kind = "adapter" if is_adapter else "model"
            model_name = repo_id.split("/")[-1] if repo_id else f"Sa2VA {kind}, {self._stage}"
        return model_card(
            title=model_name,
            base_model=self._base_model,
            is_adapter=is_adapter,
            repo_id=repo_id,
            dataset_name=dataset_name,
            trainable=self.trainable_summary,
            stage=f"{self._stage} (`{type(self).__name__}`)",
            metrics=metrics,
            log=self.state.log_history,
            tags=[*([tags] if isinstance(tags, str) else tags or []), *self._tag_names],
        )

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> CommitInfo | Future[CommitInfo] | None:
        """
        As in `Trainer`, but what goes up is the model, its processor and its card and nothing else of the output
        folder, see [`~hub.commit_operations`].

        Args:
            commit_message, blocking, token, revision, private: as in `Trainer`.
            kwargs: for `create_model_card`.

        Returns:
            `CommitInfo`, or a `Future` of it if not `blocking`; `None` on other processes than the main one.

        Raises:
            `ValueError`: `hub_model_id` is not set.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = token if token is not None else self.args.hub_token
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)  # on all processes
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**kwargs)
        self._finish_current_push()
        is_adapter = isinstance(self.model, PeftModel)
        return hf_api().create_commit(
            repo_id=self.hub_model_id,
            operations=commit_operations(self.args.output_dir, is_adapter, self.processing_class),
            commit_message=commit_message,
            token=token,
            run_as_future=not blocking,
            revision=revision if revision is not None else self.args.hub_revision,
        )

    def _push_from_checkpoint(self, checkpoint_folder):
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        if self.push_in_progress is not None and not self.push_in_progress.is_done():
            if not self.args.hub_always_push:
                return
            self._finish_current_push()  # it reads the files that the next lines write
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        checkpoint, output = Path(checkpoint_folder), Path(self.args.output_dir)
        is_adapter = isinstance(self.model, PeftModel)
        # Pushed from the output folder: the checkpoint may be rotated away before the upload ends.
        for name in [*weight_files(checkpoint, is_adapter), "README.md"]:
            shutil.copy(checkpoint / name, output / name)
        operations = commit_operations(output, is_adapter, self.processing_class)
        if self._pushes_checkpoints:
            name = "last-checkpoint" if self.args.hub_strategy == HubStrategy.CHECKPOINT else checkpoint.name
            evaluations = list(self.eval_dataset) if isinstance(self.eval_dataset, dict) else []
            operations += commit_operations(checkpoint, is_adapter, self.processing_class, name)
            operations += resume_operations(checkpoint, name, evaluations)
        job = hf_api().create_commit(
            repo_id=self.hub_model_id,
            operations=operations,
            commit_message=f"Training in progress, step {self.state.global_step}",
            token=self.args.hub_token,
            # What resuming needs is read from the checkpoint itself, which has to stay until it is up.
            run_as_future=not self._pushes_checkpoints,
            revision=self.args.hub_revision,
        )
        if not self._pushes_checkpoints:
            self.push_in_progress = PushInProgress([job])
