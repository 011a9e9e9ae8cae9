"""`python -m secure_infer.cli` is `secure-infer`."""

from secure_infer.cli import main

main()
