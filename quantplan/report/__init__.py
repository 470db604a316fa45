"""Results as text or as versioned JSON."""
