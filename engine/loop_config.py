"""Length and cadence of a run: the block `loop` of every training recipe."""

from __future__ import annotations

from dataclasses import dataclass

from vidsim.common.checks import require_at_least
from vidsim.common.errors import UserError


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Length and cadence of a run, in optimizer steps."""

    micro_batch_size: int = 32
    """Rows of one forward pass on one process."""
    micro_batch_tokens: int | None = None
    """Instead of so many rows: so many tokens and frames, on average (pretraining only)."""
    gradient_accumulation_steps: int = 1
    """Micro-batches of one optimizer step on one process."""
    max_steps: int | None = None
    """Stop after so many steps, whatever the epochs say; 0 saves the untrained model."""
    max_grad_norm: float | None = 1.0
    """Gradients are scaled down to this norm; null: never (as the published system)."""
    log_every_steps: int = 20
    """Steps between two lines of metrics.jsonl."""
    eval_every_steps: int | None = None
    """Steps between two evaluations; null: only after the last step, which is always evaluated."""
    checkpoint_every_steps: int | None = None
    """Steps between two checkpoints; null: at each evaluation."""
    keep_checkpoints: int = 2
    """Newest checkpoints that are kept, besides the best."""
    eval_batch_size: int = 64
    """Rows of one forward pass in evaluation, on all processes together."""
    num_workers: int = 0
    """Threads that prepare batches ahead; 0: each is made when it is needed."""
    gradient_checkpointing: bool = False
    """Compute the layers' activations again in the backward pass instead of keeping them: much less memory, about a
    third more time."""
    compile: bool = False
    """Compile the encoder's layers with torch.compile, which takes a C++ compiler and some minutes at first."""
    sharded: bool = False
    """Split parameters, gradients and moments over the processes (FSDP2), for models that do not fit one device."""

    def validate(self) -> None:
        """Refuse counts that are too small, and a clipping norm that would stop or turn round the training."""
        least = {
            "micro_batch_size": 1,
            "micro_batch_tokens": 1,
            "gradient_accumulation_steps": 1,
            "max_steps": 0,
            "log_every_steps": 1,
            "eval_every_steps": 1,
            "checkpoint_every_steps": 1,
            "keep_checkpoints": 1,
            "eval_batch_size": 1,
            "num_workers": 0,
        }
        require_at_least(vars(self), least, prefix="loop.")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise UserError(
                f"{self.max_grad_norm} is not above 0", field="loop.max_grad_norm", fix="set null to clip nothing"
            )
