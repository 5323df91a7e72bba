"""`python -m unlabeled doctor RECIPE [a.b=value ...]`: looks before the hours are spent.

It opens a sample of the pictures (all with `--full`), takes a few steps on this machine, and says what it found: in
words, or with `--json` as one object:

    recipe, stage        the recipe's name; pretrain or finetune
    verdict, findings    in words; each finding has code, severity (stop, high, warning, note), text and advice
    refused              why the run would not start
    out_of_memory        whether a step did not fit into the GPU
    splits.train, .val   pictures, looked_at, skipped (files that are not read, by ending), unreadable, short_side,
                         aspect, smaller_than_crop, larger_than_twice_crop (shares), channels, mean, std, suspicious,
                         classes
    copies.train, .val   exact, near: count, groups, examples; conflicting_labels
    copies.overlap       exact, near: pictures of val that are in train too; examples are (train, val)
    speed                device, threads, cores, workers, images_per_s, bound_by, waiting (share), batch,
                         memory (bytes), time (seconds); null where it could not be measured
    versions             of what decides numbers

Exit code 2 where the run would fail or be spoiled (a finding of severity stop), else 0. Nothing is written.
"""
