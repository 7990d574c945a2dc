"""What others get: a wheel, an sdist, one file that runs by itself, man pages; made anew from these sources."""
