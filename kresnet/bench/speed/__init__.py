"""How fast, beside others: `kresnet bench train`, `infer`, `input`, `probe`, `coldstart`, `growth`.

`topics` runs a topic: its module (`train`, `infer`, ...) names the contenders, `rotation` lets them
take turns in processes of their own (`worker`), `limits` measures what the machine could do, and
`results` makes the tables. Modules whose names end in `_steps` are what happens in those processes;
only they import TensorFlow or PyTorch.
"""
