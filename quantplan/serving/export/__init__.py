"""A plan taken to the launchers that people use.

One neutral `Deployment` (deployment.py) is made of what `serving.source.admit` has let pass; an exporter turns it
into files. To add a format: a module here with `EXPORTER = Exporter(target=…, write=…, needs=…, many=…)`
(exported.py), and one line in `FORMATS` (formats.py). `write` takes a tuple of deployments, exactly one unless the
exporter says `many` (launchers of several models), and returns `Exported(files, notes)`: each note names a setting
that the format has no word for, and what happens instead. `needs` names what only newer versions of the target know
(`Need(version, what)`), so that an older one is refused. Raise `CannotExport` where a plan cannot run there at all.

Every format carries `deployment.marks` (hashes, context, slots, threads, memory) where machines can read them: in
metadata where it has any, else by `commented`. The command of llama-server always is `deployment.argv(…)`: `folder` is
where a container has the models (`MODELS`), `renumbered` for containers that are given the plan's cards alone.
`deployment.target` holds what no plan says: address, paths on the target, image, queue, nodes, keys.

Tests are table-driven over `FORMATS`: tests/serving/export/read_<module>.py reads a format back
(`read(files) -> Facts`, facts.py), and the cross-format and lint tests then take every format of the table; `REFUSED`
there names the cases that it has to refuse with CannotExport.
"""
