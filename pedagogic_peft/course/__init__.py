"""The courseware: pocket models and their tasks, experiments, figures that move, memory.

May use every other folder. None of them uses this one; it is what the book's pages import.
"""
