"""The figures that move, one a file, and their scripts. `pedagogic_peft.course.figures` offers them."""
