"""How a fit is run; the keys of `conf/trainer/*.yaml`."""

import warnings
from dataclasses import dataclass, field
from numbers import Integral
from typing import Literal

import torch

from recemb.train.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """Everything about a fit that is not the data, the tables, the model or an optimizer.

    Attributes:
        batch_size: examples of one forward and backward pass, over all processes.
        eval_batch_size: the same in evaluation.
        accumulate_batches: passes whose gradients are summed into one update.
        max_epochs: passes over the training split.
        max_steps: updates after which training ends, whatever `max_epochs` says; None is no limit.
        eval_every_steps: updates between evaluations inside an epoch; None evaluates at the end of
            each epoch only.
        monitor: the validation metric that early stopping and the best checkpoint follow.
        patience: evaluations without improvement after which training stops.
        min_improvement: what counts as one.
        lr_plateau_factor: factor on all learning rates after an evaluation without improvement.
        lr_plateau_patience: such evaluations in a row from which the factor applies.
        schedule: factor on all learning rates over the updates.
        max_gradient_norm: bound on the norm of the dense part's gradient; None is no bound. Rows of
            tables are not clipped: they are updated in the backward pass.
        precision: "fp32", or "bf16" for mixed precision of the dense part; tables stay fp32.
        compile: whether torch.compile is used on the dense part, for batches of full size.
        deterministic: whether only deterministic algorithms may run; matters on CUDA.
        checkpoint_every_steps: updates between resume checkpoints; None saves at evaluations only.
        keep_checkpoints: resume checkpoints that are kept.
        async_checkpoint: whether checkpoints are written while training goes on, from a copy in
            memory as large as what is written.
        log_every_steps: updates between rows of the training loss.
        device: "auto" is CUDA where there is one, otherwise the CPU.
        num_threads: CPU threads of torch; None leaves torch's choice.
        keep_freed_memory: whether a process that trains on the CPU keeps the memory that a step
            frees for the next one, see `recemb.train.freed_memory`.

    Raises:
        ValueError: on a number or word outside its range.
    """

    batch_size: int = 4096
    eval_batch_size: int = 16384
    accumulate_batches: int = 1
    max_epochs: int = 1
    max_steps: int | None = None
    eval_every_steps: int | None = None
    monitor: str = "val/auc"
    patience: int = 2
    min_improvement: float = 1e-6
    lr_plateau_factor: float = 1.0
    lr_plateau_patience: int = 1
    schedule: Schedule = field(default_factory=Schedule)
    max_gradient_norm: float | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    deterministic: bool = False
    checkpoint_every_steps: int | None = None
    keep_checkpoints: int = 2
    async_checkpoint: bool = False
    log_every_steps: int = 50
    device: str = "auto"
    num_threads: int | None = None
    keep_freed_memory: bool = True

    def __post_init__(self) -> None:
        for name in (
            "batch_size",
            "eval_batch_size",
            "accumulate_batches",
            "max_epochs",
            "max_steps",
            "eval_every_steps",
            "patience",
            "lr_plateau_patience",
            "checkpoint_every_steps",
            "keep_checkpoints",
            "log_every_steps",
            "num_threads",
        ):
            value = getattr(self, name)
            if value is not None and not isinstance(value, Integral):
                raise ValueError(f"trainer.{name} must be a whole number, got {value!r}")
            if value is not None and value < 1:
                raise ValueError(f"trainer.{name} must be at least 1, got {value}")
        if self.monitor not in LOWER_IS_BETTER:
            raise ValueError(
                f"trainer.monitor must be one of {', '.join(LOWER_IS_BETTER)}, got '{self.monitor}'"
            )
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"trainer.precision must be fp32 or bf16, got '{self.precision}'")
        if not 0 < self.lr_plateau_factor <= 1:
            raise ValueError(
                f"trainer.lr_plateau_factor must be in (0, 1], got {self.lr_plateau_factor}"
            )

    def resolve_device(self) -> torch.device:
        """Return the device to train on.

        Raises:
            ValueError: if CUDA is asked for and absent, or on an unknown device.
        """
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
        except RuntimeError as error:
            raise ValueError(
                f"trainer.device must be auto, cpu or cuda, got '{self.device}'"
            ) from error
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(
                "trainer.device=cuda, but torch sees no CUDA device; set trainer.device=cpu or see "
                "`recemb doctor`"
            )
        return device

    def warn_if_bf16_is_slow(self, device: torch.device) -> None:
        """Warn when bf16 is asked for on a CPU without bf16 instructions."""
        if self.precision == "bf16" and device.type == "cpu" and not cpu_has_bf16():
            warnings.warn(
                "trainer.precision=bf16: this CPU has no bf16 instructions (avx512_bf16 or amx), "
                "so bf16 is emulated and slower than trainer.precision=fp32",
                stacklevel=2,
            )


LOWER_IS_BETTER: dict[str, bool] = {
    "val/auc": False,
    "val/gauc": False,
    "val/logloss": True,
    "val/ne": True,
}


def cpu_has_bf16() -> bool:
    """Return whether this CPU multiplies bf16 in hardware."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
