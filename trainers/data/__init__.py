"""Pictures on their way from raw files to batches, in five stages:

    stage     module                   does                                              output
    list      source                   asks the data set what is where; key of the cache Source: items of each split
    decode    decoder, resize          reads and checks an item, brings it to size       pictures and targets
    store     prepare, meta            decodes all once, counts, finds what is repeated  Arrow shards and meta.json
    deliver   shard_transfer, batches  copies shards to hosts that need them, maps them  Batch: pictures and targets
              pages                    asks for rows of the next batch from the disk
              stream                   or decodes while training, by Ray Data            the same batches
    augment   augment                  draws random changes, on the device               both at the model's size

`sampler` says which rows are in which batch of which rank, and seeds what is random: a function of (seed, epoch, row).
`targets` is what each kind of target (labels, masks, sets of labels, numbers) does at each stage; nothing else asks for
the kind.
"""
