"""Steps of a stand-alone script, made of a bundle."""
