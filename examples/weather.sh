#!/bin/sh
# Tell a basin something every hour, from cron: 0 * * * * examples/weather.sh
mesh say yappings "It is $(date +%H:%M), and $(uptime -p)."
