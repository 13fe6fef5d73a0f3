"""The demo model that ships in the package, and everything that made it.

It exists so that `mlxq run` works on a first try, and so that tests and benchmarks have a real model with a real
EOS *set*: short chat answers end with ``<|eot_id|>``, tool calls with ``<|eom_id|>``, completions with
``<|end_of_text|>``. `tasks` says what it can do, `train` made it, `evaluate` measures it. Importing this
package loads neither mlx nor a tokenizer.
"""

from __future__ import annotations

from pathlib import Path

MODEL_PATH = Path(__file__).parent / "model"
"""The model's directory, in Hugging Face layout."""
