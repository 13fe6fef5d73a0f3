"""Chat templates that are Python: mlx-lm brings a few, for models whose own are no Jinja.

A tokenizer's configuration names one under ``chat_template_type``. Its source then stands for the template wherever
that is read, so that dialects are told by the same signs. Imports mlx-lm, and so mlx, only for such a model.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Any

logger = logging.getLogger("rq.worker")


def use_python_template(tokenizer: Any) -> None:
    """Let a tokenizer render chats by the module that its configuration names, if it names one that mlx-lm has."""
    name = getattr(tokenizer, "init_kwargs", {}).get("chat_template_type")
    if not isinstance(name, str):
        return
    try:
        module = importlib.import_module(f"mlx_lm.chat_templates.{name}")
    except ImportError:
        logger.warning("tokenizer_config.json names the chat template %r, which mlx-lm does not have", name)
        return
    if (render := getattr(module, "apply_chat_template", None)) is not None:
        tokenizer.chat_template = inspect.getsource(module)
        tokenizer.apply_chat_template = _renderer(render)


def _renderer(render: Callable[..., str]) -> Callable[..., str]:
    def apply_chat_template(
        conversation: Sequence[dict[str, Any]],
        *,
        tools: Any = None,
        add_generation_prompt: bool = False,
        tokenize: bool = False,
        **kwargs: Any,
    ) -> str:
        assert not tokenize, "text alone is asked for"
        messages = copy.deepcopy(list(conversation))  # it may change them
        return render(messages, tools=tools, add_generation_prompt=add_generation_prompt, **kwargs)

    return apply_chat_template
