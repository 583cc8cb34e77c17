"""Fine-tuning beside others' ways of doing it, on the same weights, images and seconds.

    kresnet bench accuracy --data flowers=DIR --weights FILE --against keras,fastai,timm

`compare` divides the images, gives each contender a process of its own with a `Task`, and appends
what it answers to a file of lines, from which `results` makes the tables. The contenders are `ours`
(the whole job of `kresnet train`), `keras_guide`, `fastai_way` and `timm_way`; `start` makes the
weights that the others begin with.
"""
