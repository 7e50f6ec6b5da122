"""What is learned: the loss, the counts gathered from the workers, and the scores made of them. Found by name.

A task is a module here, or a file of your own (`--task ./mine.py`), that offers

    TARGET = "labels"                             the kind of target it learns from: see data/targets
    CLASSES = 2                                   only where it knows no other number of classes
    outputs(classes) -> int                       channels (of images: logits) that it needs of a model
    make(classes, class_weights, *, ...) -> Task  the task itself; see base.Task

`classes` is how many the data has, `class_weights` float64 (classes,) or None. The arguments after `*` are the
recipe's `task_args`: names and types are checked by the signature before anything is read (`Literal[...]` lists the
values that are allowed). What else `make` and `outputs` refuse, by ValueError, before pictures are decoded. Where
`make` has an argument called target_mean, target_std or target_shares, it gets what `Target.facts` says of the training
targets; and where it has one called points, what points(image_size, ...) of the model's module says: where the model
predicts, float64 (points, 3), x, y and stride in pixels of the picture; anchors, likewise, gets those of a model that
has them, float64 (anchors, 4), left, top, right and bottom. image_size is the picture's height and width.

    classify          a class for each picture
    ordinal           a class for each picture, of classes with an order
    multilabel        any number of labels for each picture
    regress           a number for each picture, or several
    segment           a class for each pixel
    segment_binary    whether each pixel belongs to the foreground
    detect            boxes of objects, with their classes

What `loss=` of task_args may name: losses.py.
"""
