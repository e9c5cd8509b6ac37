"""Controls that run the page's Python, where a kernel is at hand."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any


def live(compute: Callable[..., Any], **choices: Sequence[Any]) -> None:
    """Show controls that run ``compute`` in the kernel, where a reader has one; else say so.

    In JupyterLab and on Colab the reader picks one value per argument and presses a button; what
    ``compute`` prints, draws or returns stands below. Where nobody can press it (on the static page,
    in a test, in `make run`) one sentence is printed, the same every time.

    Args:
        compute: the page's own function, such as one that retrains with rank ``r``.
        **choices: {argument: the values to choose from}.
    """
    if not _has_a_reader():
        print("In JupyterLab or on Colab this cell shows controls that run the code above.")
        return
    import ipywidgets  # type: ignore[import-untyped]
    from IPython.display import display

    pickers = {
        name: ipywidgets.SelectionSlider(options=list(values), description=name)
        for name, values in choices.items()
    }
    button, out = ipywidgets.Button(description="Run"), ipywidgets.Output()

    def run(_: Any) -> None:
        out.clear_output(wait=True)
        with out:
            result = compute(**{name: picker.value for name, picker in pickers.items()})
            if result is not None:
                display(result)  # type: ignore[no-untyped-call]

    button.on_click(run)
    display(ipywidgets.VBox([*pickers.values(), button, out]))  # type: ignore[no-untyped-call]


def _has_a_reader() -> bool:
    """True in a kernel that JupyterLab or Colab started, where somebody can move a widget."""
    opened = "JPY_SESSION_NAME" in os.environ or "google.colab" in sys.modules
    if not opened:
        return False
    from importlib.util import find_spec

    return find_spec("ipywidgets") is not None
