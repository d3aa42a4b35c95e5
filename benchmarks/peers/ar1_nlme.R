arguments <- commandArgs(trailingOnly = TRUE)
source(file.path(arguments[3], "timing.R"))
suppressPackageStartupMessages(library(nlme))
d <- read.csv(arguments[1])
d$g <- factor(d$g)
bench(function() lme(y ~ x, random = ~ 1 | g, correlation = corAR1(form = ~ t | g), data = d, method = "ML"),
      paste("nlme", packageVersion("nlme")))
