"""From a user's model to a multi-exit network. Reading order: `adapter` (the contract of a model) -> `cost` (workload
of every layer) -> `points` (where exits go) -> `split` (features there, and resumable stages) -> `exits` (heads) ->
`network` (the assembly, `convert`); `zoo` and `weights` load models for the command line."""
