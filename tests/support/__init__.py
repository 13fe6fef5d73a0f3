"""What tests of several folders share: fixtures, fakes, tiny models, small requests."""
