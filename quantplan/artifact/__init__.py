"""What a build leaves behind: receipt, results, plan file, store."""
