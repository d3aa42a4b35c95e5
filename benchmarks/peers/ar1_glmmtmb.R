arguments <- commandArgs(trailingOnly = TRUE)
source(file.path(arguments[3], "timing.R"))
suppressPackageStartupMessages(library(glmmTMB))
d <- read.csv(arguments[1])
d$g <- factor(d$g)
d$time <- factor(d$t)
bench(function() glmmTMB(y ~ x + (1 | g) + ar1(0 + time | g), d, dispformula = ~ 0),
      paste("glmmTMB", packageVersion("glmmTMB")))
