"""The IPython profile of every kernel that runs a chapter."""

import logging

c = get_config()  # type: ignore[name-defined]

# Without this extension no check would run, so a kernel that cannot load it must not start.
c.InteractiveShellApp.extensions = ["loom.run.kernel.checks"]
c.InteractiveShellApp.reraise_ipython_extension_failures = True

# Vectors for both: the site takes the SVG, print takes the PDF. matplotlibrc has the look.
c.InlineBackend.figure_formats = {"svg", "pdf"}
# Embedding a mathematical font in a PDF, it remarks on the date in that font's file.
logging.getLogger("fontTools").setLevel(logging.ERROR)

c.HistoryManager.enabled = False
c.IPKernelApp.log_level = 40
