arguments <- commandArgs(trailingOnly = TRUE)
source(file.path(arguments[3], "timing.R"))
suppressPackageStartupMessages(library(lme4))
d <- read.csv(arguments[1], stringsAsFactors = TRUE)
d$district <- factor(d$district)
bench(function() glmer(use ~ age10 + I(age10^2) + urb + livch + (1 + urb | district), d, family = binomial),
      paste("lme4", packageVersion("lme4")))
