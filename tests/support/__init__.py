"""What the tests share: fakes, scripted peers, builders of messages."""
