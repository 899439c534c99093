An idle session keeps little more than half of what it kept; large answers on uvloop take half the CPU.
