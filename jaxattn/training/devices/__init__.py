"""The ways to run the steps over devices."""
