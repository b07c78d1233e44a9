"""Files with weather data, GRIB and NetCDF: what they hold, and its values in canonical order and units."""
