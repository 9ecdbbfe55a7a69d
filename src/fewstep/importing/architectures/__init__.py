"""Networks of other repositories, described as networks of this library; one file a family."""
