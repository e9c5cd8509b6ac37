"""How `make run` executes a notebook: from a fresh kernel, and so that only what changed shows in a diff.

What the kernel says of itself (the version of Python), times, what editors add, and what bitsandbytes says on
processors with AVX-512 depend on the machine, so they are not stored. A notebook that raises is left as it
was, and the command fails.
"""

import os

os.environ["PEDAGOGIC_PEFT_GATE"] = "1"  # a run that differs from the stored one is an error here

NOISE = "Failed to load CPU gemm_4bit_forward from kernels-community"

c = get_config()  # noqa: F821

c.NotebookClient.kernel_name = "python3"
c.NotebookClient.timeout = 300
c.NotebookClient.record_timing = False


def without_noise(notebook, resources):
    """Take the line away that `chapters/conftest.py` calls noise."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if NOISE not in o.get("text", "")]
    return notebook, resources


c.NotebookExporter.preprocessors = [
    "nbconvert.preprocessors.CoalesceStreamsPreprocessor",
    without_noise,
]  # after those below
c.ExecutePreprocessor.enabled = True
c.ClearMetadataPreprocessor.enabled = True
c.ClearMetadataPreprocessor.preserve_nb_metadata_mask = {
    "kernelspec",
    ("language_info", "file_extension", "name", "pygments_lexer"),
}
c.ClearMetadataPreprocessor.preserve_cell_metadata_mask = {  # all that a page may use
    *("tags", "mystnb", "library", "without", "reason", "tolerance")
}
