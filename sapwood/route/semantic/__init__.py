"""Which model a question fits: `table` is what its owner wrote, `signals` what is seen in a question, `meanings` and `labels` what models
say of it, `decide` what follows by the rules, `auto` the guest that does so for requests, `answers` a cache by meaning, `standing` what
answers a path where nobody says."""
