"""Many runs: sweep files, jobs, places where jobs run, results. Floor 1, no torch."""
